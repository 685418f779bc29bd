"""What a command starts from is checked before it needs Prefect, of which there is none here."""

import json
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from typer.testing import CliRunner

from expandr_cli.main import app

NOWHERE = "http://127.0.0.1:9/api"
MISSING = "no such folder"
TOLERANCE = "promotion={enabled: true, tolerance: {law=/nowhere: 0.1}}"


@pytest.fixture(scope="module")
def here(tmp_path_factory, llm_folder) -> Path:
    """A collection of one query and passage, a model, a config, and an empty store."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "data/qrels").mkdir(parents=True)
    for name in ("corpus", "queries"):
        (folder / f"data/{name}.jsonl").write_text(json.dumps({"_id": "1", "text": "word"}))
    (folder / "data/qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n1\t1\t1\n")
    (folder / "model").symlink_to(llm_folder)
    (folder / "lines.yaml").write_text("lines: [{name: log, set: {distil.queries: /nowhere}}]")
    (folder / "config.yaml").write_text("{}")
    return folder


def refusal(*command: object) -> str:
    """What a command says that is refused."""
    with temporary_settings({PREFECT_API_URL: NOWHERE}):
        result = CliRunner().invoke(app, [str(word) for word in command])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    return result.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--datasets", "law=/nowhere"], "dataset law: /nowhere: no such folder"),
        (["--datasets", "beir=/nowhere"], "dataset msmarco: /nowhere/msmarco: no such folder"),
        (["--datasets", "./"], "corpus.jsonl is missing"),
        (
            ["--datasets", "{data}", "--gate-on", "/nowhere"],
            "gate_on: dataset nowhere-dev: /nowh",
        ),
        (["--datasets", "{data}", "--gate-on", "{data}"], "qrels/dev.tsv is missing"),
        (["--datasets", "{data}", "--gate-on", "{data}", "--set", "gate.mode=off"], "gate.mode is"),
        (["--datasets", "{data}"], "llm.model is 'tiny'"),
        (["--datasets", "scifact"], "llm.model is 'tiny'"),  # an archive is downloaded later
    ],
)
@pytest.mark.parametrize("plan", [[], ["--plan"]])
def test_a_suite_misses_a_dataset_at_once(here, arguments, complaint, plan):
    named = [argument.format(data=here / "data") for argument in arguments]
    line = refusal("evaluate", here / "config.yaml", "--store", here / "store", *named, *plan)
    assert complaint in line


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("data.collection=/nowhere", "data.collection: /nowhere: no such folder"),
        ("distil={enabled: true, queries: /nowhere}", "distil.queries: /nowhere: no such file"),
        (TOLERANCE, "promotion.tolerance: dataset law: /nowhere: no such folder"),
        ("dpo.lora.targets=[nose]", "'nose'"),
        ("seed=1", f"no Prefect server answers at PREFECT_API_URL={NOWHERE}"),
    ],
)
@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_run_misses_a_file_at_once(here, command, change, complaint):
    line = refusal(command, here / "config.yaml", "--store", here / "store", "--set", change)
    assert complaint in line


def test_an_ablation_misses_a_file_of_a_line_at_once(here):
    command = ["ablate", here / "config.yaml", here / "lines.yaml", "--store", here / "store"]
    line = refusal(*command, "--set", "distil.enabled=true")
    assert "line 'log': distil.queries: /nowhere: no such file" in line


@pytest.mark.parametrize(
    ("stage", "arguments", "complaint"),
    [
        (
            "dpo",
            ["--input", "llm=dpo-1", "--input", "pairs=pairs-1"],
            "'dpo-1' is the beginning of 0",
        ),
        ("dpo", [], "dpo needs inputs.llm and inputs.pairs"),
        ("prepare", ["--set", "data.collection=/nowhere"], "/nowhere: no such folder"),
    ],
)
def test_a_stage_misses_what_it_starts_from_at_once(here, stage, arguments, complaint):
    command = ["stage", stage, here / "config.yaml", "--store", here / "store"]
    assert complaint in refusal(*command, *arguments)


def test_runs_to_compare_are_missed_before_the_table_is_published(here):
    line = refusal("compare", "one", "two", "--publish", "--store", here / "store")
    assert "no finished run 'one'" in line


def test_a_plan_that_cannot_be_saved_is_not_made(here):
    command = ["plan", here / "config.yaml", "--store", here / "store", "--save"]
    assert "--save" in refusal(*command, here)
    assert "--save" in refusal(*command, here / "nowhere" / "costs.yaml")
