"""Ablations: what each line makes and finds, the table, and a line that comes to nothing."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
import tiny_loop
from typer.testing import CliRunner

from expandr_cli.main import app
from expandr_core.evaluation.significance import holm
from expandr_core.store.garbage import find_garbage
from expandr_core.store.store import Store
from flows.ablation_lines import AblationLine
from flows.run_record import find_run

if TYPE_CHECKING:
    from flows.ablate import AblationSummary

pytestmark = pytest.mark.usefixtures("prefect_server")
LINES = (
    AblationLine(name="no-dpo", title="w/o DPO", set={"loop.order": "retriever_only"}),
    AblationLine(name="clear-pairs", set={"preferences.minimum_margin": 1.99}),
    AblationLine(name="no-mining", set={"training.hard_negatives": 0}),
)
Steps = dict[str, dict[str, set[str]]]


def run(store: Path | str) -> "AblationSummary":
    from flows.ablate import ablate

    return ablate(lines=LINES, options=tiny_loop.OPTIONS, seeds=2, store=str(store))


@pytest.fixture(scope="module")
def done(first, tmp_path_factory) -> "AblationSummary":
    """An ablation of two seeds in a store where the loop has run with the first of them."""
    import shutil

    store = tmp_path_factory.mktemp("ablation") / "store"
    return run(shutil.copytree(first.record.store, store))


def made_by(summary: "AblationSummary") -> Steps:
    """Return the steps that were not found in the store: titles by seed and line."""
    from finished_loop import task_runs

    made: Steps = {}
    for task in task_runs(summary.flow_run_id, len(summary.steps) + 1):  # one has failed
        part, colon, title = task.name.partition(": ")
        if colon and part.startswith("seed") and task.state_name != "Cached":
            seed, _, line = part.partition(", ")
            made.setdefault(seed, {}).setdefault(line, set()).add(title)
    return made


def table(summary: "AblationSummary") -> dict[str, dict[str, Any]]:
    """Return the rows of ablation.json by name."""
    folder = Store(summary.store).local(summary.table)
    found = json.loads((folder / "ablation.json").read_text())
    return {row["name"]: row for row in found["rows"]}


LAST = {
    "expand the test queries, last round",
    "encode the corpus, test: last round's models",
    "evaluate on test: last round's models",
    "evaluate on test: base retriever",
}


def test_only_what_a_line_changes_is_made(done):
    made = made_by(done)
    trained = {"mine hard negatives for the retriever, round 1", "train the retriever, round 1"}
    without_dpo = {"expand the retriever's queries, round 1", *trained, *LAST}
    unmined = LAST - {"expand the test queries, last round", "evaluate on test: base retriever"}
    # with seed 1 the loop itself has run before: the table needs nothing more of the base, and
    # knows the untrained LLM's expansions of the test queries
    assert made["seed 1"] == {
        "no-dpo": without_dpo
        - {"expand the test queries, last round", "evaluate on test: base retriever"},
        "clear-pairs": {"choose pairs, round 1"},
        "no-mining": {"train the retriever, round 1", *unmined},
    }
    assert "align by DPO, round 1" in made["seed 2"]["base"]
    assert made["seed 2"]["no-dpo"] == without_dpo
    assert "clear-pairs" not in made["seed 2"]  # it has come to nothing with seed 1
    assert made["seed 2"]["no-mining"] == made["seed 1"]["no-mining"]


def test_neither_greedy_texts_nor_the_control_nor_dev_are_made_for_the_table(done):
    said = " ".join(step.title for step in done.steps)
    assert not [word for word in ("greedily", "control", "dev queries", "BM25") if word in said]


def test_the_table_has_every_line_with_its_cost_and_why_it_has_no_result(done):
    rows = table(done)
    assert list(rows) == ["query", "base", *(line.name for line in LINES)]
    assert rows["no-dpo"]["title"] == "w/o DPO"
    assert rows["no-dpo"]["changes"] == "loop.order=retriever_only"
    assert rows["no-mining"]["plain"] is None  # the LLM is the base's
    assert rows["no-dpo"]["plain"]["difference"] is not None
    broken = rows["clear-pairs"]
    assert broken["joint"] is None and broken["error"].startswith(
        "seed 1: no preference pair is left"
    )
    base = {step.artifact.key for step in done.steps if ", base/" in step.id.name}
    own = {step.artifact.key for step in done.steps if ", no-mining/" in step.id.name} - base
    assert rows["base"]["made"] == rows["base"]["artifacts"] == len(base)
    assert rows["no-mining"]["made"] == len(own) == 6  # of each seed: train, encode, evaluate
    assert all(rows[name]["seconds"] > 0 for name in ("no-mining", "base"))
    assert rows["no-mining"]["tokens"] == 0 < rows["base"]["tokens"]


def test_lines_are_paired_by_seed_and_query_and_corrected_together(done):
    store = Store(done.store)
    found = json.loads((store.local(done.report) / "comparison.json").read_text())
    asked = [(each["before"], each["after"]) for each in found["contrasts"]]
    assert asked == [
        ("query", "base"),
        ("query", "base_base-retriever"),
        ("base", "no-dpo"),
        ("base_base-retriever", "no-dpo_base-retriever"),
        ("base", "no-mining"),
    ]
    corrected = holm([each["p"] for each in found["contrasts"]])
    assert [each["corrected_p"] for each in found["contrasts"]] == pytest.approx(corrected)
    assert {each["queries"] for each in found["contrasts"]} == {36}  # 18 of each world
    assert {each["clusters"] for each in found["contrasts"]} == {6}  # three things of each world
    scores = {
        (seed, line): json.loads((store.local(step.artifact) / "metrics.json").read_text())
        for step in done.steps
        if step.id.stage == "evaluate" and step.id.name.endswith("/joint/0")
        for seed, line in [step.id.name.split("/")[0].split(", ")]
    }
    for line in ("base", "no-dpo", "no-mining"):
        own = [scores[seed, line]["ndcg_at_10"] for seed in ("seed 1", "seed 2")]
        row = table(done)[line]["joint"]
        assert row["ndcg_at_10"] == pytest.approx(sum(own) / 2)
        assert row["ndcg_at_10_deviation"] == pytest.approx(abs(own[0] - own[1]) / 2**0.5)
    before, after = (table(done)[line]["joint"]["ndcg_at_10"] for line in ("base", "no-dpo"))
    assert found["contrasts"][2]["difference"] == pytest.approx(after - before)


def test_it_stands_in_three_formats_and_says_it_in_words(done):
    folder = Store(done.store).local(done.table)
    rows = pd.read_csv(folder / "ablation.csv")
    assert list(rows["name"]) == list(table(done))
    assert rows["joint_ndcg_at_10"].notna().tolist() == [True, True, True, False, True]
    text = (folder / "ablation.md").read_text()
    assert "| w/o DPO" in text and "loop.order=retriever_only" in text
    assert "**clear-pairs** has no result: seed 1: no preference pair is left" in text
    assert "Against base" in text


def test_a_second_run_finds_everything_and_lays_out_the_same_table(done):
    again = run(done.store)
    assert made_by(again) == {"seed 1": {"clear-pairs": {"choose pairs, round 1"}}}
    assert again.table == done.table


def test_an_export_of_it_says_why_there_is_none(done, tmp_path):
    command = ["export", done.name, str(tmp_path / "out"), "--store", done.store]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "250"})
    assert result.exit_code == 2 and f"{done.name} is a run of ablate" in result.output
    assert not list(tmp_path.iterdir())


def test_it_is_listed_shown_and_kept(done):
    shown = {"COLUMNS": "80"}
    store = Store(done.store)
    runs = CliRunner().invoke(app, ["runs", "--store", store.url], env={"COLUMNS": "250"})
    assert done.name in runs.output and "The best system is" in runs.output
    output = CliRunner().invoke(app, ["show", done.name, "--store", store.url], env=shown).output
    assert "w/o DPO" in output and "none" in output
    latest = find_run(store, "latest")
    assert latest and latest.name != done.name  # which the loop's other commands read
    found = find_garbage(store, 1, datetime.now(UTC) + timedelta(days=1))
    garbage = {each.name for each in found if each.kind == "artifact"}
    assert not garbage & {step.artifact.key for step in done.steps}
