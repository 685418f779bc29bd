"""`expandr ablate` before anything runs: what a file of lines may say, and what is refused."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from expandr_cli.main import app
from expandr_core.options.loop import JointLoopOptions
from flows.ablation_lines import read_ablations, variants
from flows.presets import CONFIGS, resolve


def refused(folder: Path, text: str) -> str:
    """Return what the command says of a file of lines that it refuses."""
    path, store = folder / "lines.yaml", folder / "store"
    path.write_text(text)
    command = ["ablate", str(CONFIGS / "tiny.yaml"), str(path), "--store", str(store)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert not (store / "begun").exists() and not (store / "artifacts").exists()
    return " ".join(result.output.split())


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (
            "[{name: a, set: {dpo.betta: 1}}]",
            "line 'a': there is no option dpo.betta; did you mean dpo.beta?",
        ),
        (
            "[{name: a, set: {dpo.beta: 0.3}}, {name: b, set: {dpo.beta: -1}}]",
            "line 'b': dpo.beta: Input should be greater than 0, not -1",
        ),
        ("[{name: a, set: {dpo.beta: 0.1}}]", "line 'a': its results are those of 'base'"),
        (
            "[{name: a, set: {dpo.beta: 0.3}}, {name: b, set: {dpo.beta: 0.3}}]",
            "line 'b': its results are those of 'a'",
        ),
        (
            "[{name: a, set: {dpo.beta: 0.3}}, {name: a, set: {dpo.beta: 0.4}}]",
            "line 'a': there are two rows of that name",
        ),
        ("[{name: base, set: {dpo.beta: 0.3}}]", "line 'base': there are two rows of that name"),
        ("[{name: a, set: {dpo.device_batch_size: 2}}]", "line 'a': its results are those of"),
        ("[{name: a, set: {seed: 3}}]", "line 'a': seed is the same for the whole table"),
        ("[{name: a, set: {world.test_entities: 4}}]", "line 'a': world is the same for"),
        ("[{name: a, set: {retriever.model: no/such}}]", "line 'a': retriever.model"),
        ("[{name: A b, set: {dpo.beta: 0.3}}]", "lines.0.name: String should match pattern"),
        ("[{name: a}]", "lines.0.set: Field required"),
        ("[]", "lines: Tuple should have at least 1 item"),
        (
            "{base: {dpo.zzz: 1}, lines: [{name: a, set: {dpo.beta: 0.3}}]}",
            "base: there is no option dpo.zzz",
        ),
        ("{lines: [{name: a, sett: 3}]}", "lines.0.set"),
    ],
)
def test_a_wrong_line_is_named_before_anything_runs(tmp_path, lines, complaint):
    assert complaint in refused(tmp_path, lines)


def test_a_file_that_is_none_is_named(tmp_path):
    command = ["ablate", str(CONFIGS / "tiny.yaml"), str(tmp_path / "none.yaml")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2 and "none.yaml" in result.output


def test_the_papers_ablations_are_valid_on_the_demo_and_each_tells_its_difference():
    listed = read_ablations(CONFIGS / "ablations.yaml")
    found = variants(resolve("demo", JointLoopOptions()), listed.lines)
    assert len(found) > 10
    assert found["q2e"].expand.prompt.max_tokens == 448  # the rest of the group stays
    assert all(line.title for line in listed.lines)
