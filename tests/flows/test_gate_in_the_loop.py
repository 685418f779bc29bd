"""The gate in the loop: its rows, what it is learned from, and the search that asks it."""

import io
import shutil

import pytest
import tiny_loop
from finished_loop import Finished, finished
from typer.testing import CliRunner

from expandr_cli.main import app
from expandr_cli.preflight import Unobserved
from expandr_cli.search import print_answer, served
from expandr_cli.terminal import as_written
from expandr_core.errors import DataError
from expandr_core.evaluation.comparison import read_comparison
from expandr_core.options.gate import GateOptions
from expandr_core.retrieval.gate import AFTER, BEFORE, Gate, read_gate
from expandr_core.serving.answers import Asked, answer
from expandr_core.serving.opened import Opened
from expandr_core.serving.writer import Writer
from expandr_core.store.artifacts import Artifact
from expandr_core.store.run_records import StepId
from expandr_core.store.store import Store
from flows.model_pairs import MeasuredModels, find_pairs

pytestmark = pytest.mark.usefixtures("prefect_server")
OPTIONS = tiny_loop.OPTIONS.model_copy(
    update={
        "gate": GateOptions(mode="after"),
        "evaluate": tiny_loop.OPTIONS.evaluate.model_copy(update={"fusion": "rrf"}),
    }
)


@pytest.fixture(scope="module")
def gated(first, tmp_path_factory) -> Finished:
    """The first run again, with a gate."""
    folder = tmp_path_factory.mktemp("gated") / "store"
    return finished(shutil.copytree(first.record.store, folder), OPTIONS)


def test_a_gate_adds_its_steps_and_changes_no_other(first, gated):
    assert gated.made == {
        StepId("gate"),
        StepId("evaluate", 0, "test/learned/0"),
        StepId("evaluate_runs", 0, "test/gated/0"),
        StepId("evaluate_runs", 0, "test/rrf/0"),
        StepId("compare"),
    } - ({StepId("evaluate", 0, "test/learned/0")} - gated.made)  # known, if the weight is 0 or 0.5
    kept = {step: digest for step, digest in gated.digests.items() if step in first.digests}
    assert kept | {StepId("compare"): ""} == first.digests | {StepId("compare"): ""}
    assert gated.record.models["gate"] == gated.artifact("gate")


def test_its_rows_are_tested_against_the_query_and_against_always_expanding(gated):
    store, best = Store(gated.record.store), gated.record.best_round
    comparison = read_comparison(store.local(gated.record.report))
    always = f"round-{best}" if best else "untrained"
    asked = {(each["before"], each["after"]) for each in comparison["contrasts"]}
    for name in ("learned", "gated", "rrf"):
        assert {("query", name), (always, name)} <= asked
        [system] = [each for each in comparison["systems"] if each["name"] == name]
        assert system["baseline"] == "query"
    said = comparison["verdict"]["sentences"][-1]
    assert "gated after generation" in said
    assert "calls of the LLM" in said or "expands none, so it equals" in said
    assert said in (store.local(gated.record.report) / "report.md").read_text()


def upstream(store: Store, artifact: Artifact) -> set[tuple[str, str]]:
    """Return what an artifact was made from, as (stage, file)."""
    found, waiting = set(), [artifact]
    while waiting:
        for each in store.manifest(waiting.pop().key)["inputs"].values():
            made = Artifact(**each)
            found.add((made.stage, made.path))
            waiting.append(made)
    return found


def test_a_gate_is_learned_on_dev_alone(gated):
    store = Store(gated.record.store)
    gate = gated.artifact("gate")
    files = {path for stage, path in upstream(store, gate) if stage == "prepare"}
    assert {"dev_queries.parquet", "dev_qrels.parquet"} <= files
    assert not {path for path in files if path.startswith("test")}
    measured = gated.artifact("evaluate_runs", 0, "test/gated/0")
    assert ("gate", "") in upstream(store, measured)
    assert ("prepare", "test_qrels.parquet") in upstream(store, measured)


def asked(gated: Finished, gate: Gate) -> tuple[str, list[str], bool]:
    """Search with a gate; return what is said, what is found, and whether the LLM was asked."""
    said = io.StringIO()
    store = Store(gated.record.store)
    writer = Writer(store, gated.record.models["llm"], gated.record.options, None, {})
    opened = Opened(store, served(store, gated.record), writer)
    opened.gate = gate
    [found] = answer(opened, [Asked("what sings?", 2)])
    print_answer(as_written(file=said, width=300), opened, found)
    return said.getvalue(), found.hits["passage_id"].to_pylist(), "generator" in vars(writer)


def test_search_asks_the_gate_before_the_llm_writes(gated):
    def words(threshold: float) -> Gate:  # of which the question has two
        numbers = {"means": (0,) * 3, "scales": (1,) * 3, "coefficients": (1, 0, 0)}
        return Gate("before", 0.5, 0.5, "learned", BEFORE, threshold=threshold, **numbers)

    for gate in (words(2.5), Gate("after", 0.5, 0.0, "never")):
        said, _, wrote = asked(gated, gate)
        assert "1 call of the LLM saved" in said and not wrote
    for gate in (words(1.5), Gate("global", 0.5, 0.5, "always")):
        said, _, wrote = asked(gated, gate)
        assert "expansion: " in said and "gate" not in said and wrote


def test_a_gate_after_generation_can_leave_the_expansion_out(gated):
    numbers = {"means": (0,) * 6, "scales": (1,) * 6, "coefficients": (0,) * 6}
    found = {}
    for threshold in (-1, 1):
        gate = Gate("after", 0.9, 0.9, "learned", AFTER, threshold=threshold, **numbers)
        said, found[threshold], wrote = asked(gated, gate)
        assert wrote and ("the expansion is not used" in said) == (threshold == 1)
    assert found[1] == asked(gated, Gate("before", 0.5, 0.0, "never"))[1]
    assert found[1] != found[-1]


def test_the_command_takes_the_runs_gate_or_leaves_it(gated):
    command = ["search", "what sings?", "-k", "2", "--store", gated.record.store]
    outputs = [CliRunner().invoke(app, [*command, *more]).output for more in ([], ["--no-gate"])]
    policy = read_gate(Store(gated.record.store).local(gated.record.models["gate"])).policy
    assert ("gate: " in outputs[0]) == (policy == "never")
    assert "expansion: " in outputs[1] and "gate: " not in outputs[1]


def test_a_gate_is_not_asked_about_scores_that_it_does_not_know(gated):
    wanted = MeasuredModels(runs=(gated.record.name,))
    store, evaluate = gated.record.store, OPTIONS.evaluate.model_copy(update={"similarity": "dot"})
    otherwise = Unobserved(store, OPTIONS.model_copy(update={"evaluate": evaluate}))
    assert find_pairs(Unobserved(store, OPTIONS), wanted, print)[0].gate
    with pytest.raises(DataError, match="was learned on scores by another"):
        find_pairs(otherwise, wanted, print)
    assert find_pairs(otherwise, wanted.model_copy(update={"gate_on": "dev"}), print)


def test_a_gated_number_explains_itself(gated):
    command = ["explain", "latest", "gated/ndcg@10", "--check", "--store", gated.record.store]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "gate-" in result.output and "corpus.parquet" in result.output
