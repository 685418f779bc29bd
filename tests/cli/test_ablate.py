"""`expandr ablate` before anything runs: what a file of lines may say, and what is refused."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from store_keys import full
from typer.testing import CliRunner

from expandr_cli.ablate import print_ablation
from expandr_cli.main import app
from expandr_cli.terminal import as_written
from expandr_core.evaluation.ablation import TableRow, ablation_of, flat, render_ablation
from expandr_core.options.loop import JointLoopOptions
from expandr_core.store.store import Store
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
        ("[{name: a, set: {dpo.beta: 0.1}}]", "line 'a': its options are those of 'base'"),
        (
            "[{name: a, set: {dpo.beta: 0.3}}, {name: b, set: {dpo.beta: 0.3}}]",
            "line 'b': its options are those of 'a'",
        ),
        (
            "[{name: a, set: {dpo.beta: 0.3}}, {name: a, set: {dpo.beta: 0.4}}]",
            "line 'a': there are two rows of that name",
        ),
        ("[{name: base, set: {dpo.beta: 0.3}}]", "line 'base': there are two rows of that name"),
        ("[{name: a, set: {seed: 3}}]", "line 'a': seed is the same for the whole table"),
        ("[{name: a, set: {world.test_entities: 4}}]", "line 'a': world is the same for"),
        ("[{name: a, set: {retriever.model: no/such}}]", "line 'a': retriever.model"),
        ("[{name: a, set: {loop.start_from: pairs}}]", "line 'a': loop.start_from is 'pairs', and"),
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


def result(system: str, score: float, difference: float | None, **more: Any) -> dict[str, Any]:
    """Return a row of a comparison's results."""
    tested = difference is not None
    return {
        "system": system, "ndcg_at_10": score, "ndcg_at_10_deviation": 0.0125,
        "difference": difference, "p": 0.01 if tested else None,
        "corrected_p": 0.04 if tested else None, "significant": tested or None,
        "effect": ("better" if difference > 0 else "worse") if difference is not None else None,
        **more,
    }  # fmt: skip


@pytest.fixture
def ablation() -> dict[str, Any]:
    comparison = {
        "metric": "ndcg_at_10", "test": "t", "significance_level": 0.05, "warnings": [],
        "datasets": [{"name": "test", "subsets": ["seed-0", "seed-1", "seed-2"]}],
        "subsets_are": "worlds", "contrasts": [{"clusters": 40}] * 4,
        "verdict": {"sentences": ["Against base, significantly worse: LLM-QE (expansion alone)."]},
        "results": [
            result("query", 0.164, None),
            result("base", 0.643, 0.479),
            result("base_base-retriever", 0.349, 0.185),
            result("llm-qe", 0.612, -0.031),
            result("q2e", 0.655, 0.012, significant=False, effect="unclear", corrected_p=0.31),
            result("q2e_base-retriever", 0.251, -0.098),
        ],
    }  # fmt: skip
    cost = {"made": 9, "artifacts": 22, "seconds": 130.4, "tokens": 123456}
    plain = "base_base-retriever"
    rows = [
        TableRow(name="base", title="base", plain=plain, **cost),
        TableRow(name="llm-qe", title="LLM-QE (expansion alone)", plain=plain, **cost,
            changes={"training.expansion_weight": 1}),
        TableRow(name="q2e", title="[/q] prompt q2e", plain="q2e_base-retriever", **cost),
        TableRow(name="bad", title="too strict", plain=plain, error="seed 0: too few pairs [x]", **cost),
    ]  # fmt: skip
    return ablation_of(comparison, rows, "query")


def test_the_table_fits_into_a_terminal(ablation, tmp_path):
    store = Store(str(tmp_path / "store"))
    folder = store.scratch / "table"
    folder.mkdir()
    (folder / "ablation.json").write_text(json.dumps(ablation))
    made = store.commit(full("ablation-1"), folder, [], {"counts": {}})
    file = StringIO()
    print_ablation(as_written(file=file, width=80), store, made)
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert max(map(len, lines[:12])) <= 80
    assert lines[1:9] == [
        "nDCG@10 on test, 3 seeds",
        "line                      joint  vs. base      p  base retr.  vs. base     cost",
        "query only                0.164",
        "base                      0.643  +0.479 *  0.040       0.349  +0.185 *  0:02:10",
        "LLM-QE (expansion alone)  0.612  -0.031 *  0.040           =            0:02:10",
        "[/q] prompt q2e           0.655  +0.012    0.310       0.251  -0.098 *  0:02:10",
        "too strict                 none                                         0:02:10",
        "",
    ]
    assert "too strict: seed 0: too few pairs [x]" in lines


def test_the_table_as_markdown_and_csv(ablation):
    rows = [line for line in render_ablation(ablation).splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert len({len(each) for each in cells}) == 1
    assert cells[4][:8] == [
        *("LLM-QE (expansion alone)", "training.expansion_weight=1"),
        *("0.612 ± 0.013", "-0.031 * worse", "0.040", "=", "", ""),
    ]
    assert cells[5][5:] == ["0.251 ± 0.013", "-0.098 * worse", "0.040", "9 of 22", "130", "123,456"]
    assert cells[6][2:6] == ["none", "", "", ""]
    found = {row["name"]: row for row in flat(ablation)}
    assert found["q2e"]["base_retriever_difference"] == -0.098
    assert found["llm-qe"]["base_retriever_ndcg_at_10"] is None
    assert found["bad"]["joint_ndcg_at_10"] is None and found["bad"]["error"]
