"""`expandr stage`: the stages of the flow, and inputs by role."""

from typing import get_args

from typer.testing import CliRunner

from expandr_cli import main
from flows import single_stage


def test_the_command_has_the_stages_of_the_flow():
    assert get_args(main.Stage) == get_args(single_stage.Stage)


def test_an_input_that_no_stage_has_is_refused(tmp_path):
    command = ["stage", "dpo", "configs/tiny.yaml", "--store", str(tmp_path), "--input", "lmm=x"]
    refused = CliRunner().invoke(main.app, command)
    assert refused.exit_code == 2
    assert refused.stderr.startswith("error: --input lmm: give one of llm, retriever,")
