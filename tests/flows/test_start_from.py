"""The loop starts from pairs or expansions that exist, and makes none of its own in that round."""

from typing import Any

import pytest
import tiny_loop
from finished_loop import Finished, finished
from released import PAIRS, TRIPLES, write_array, write_lines
from typer.testing import CliRunner

from expandr_cli.main import app
from expandr_core.errors import DataError
from expandr_core.options.loop import JointLoopOptions
from expandr_core.store.store import Store
from flows.single_stage import Inputs, single_stage

pytestmark = pytest.mark.usefixtures("prefect_server")


def options(start_from: str, order: str = "align_first", **data: Any) -> JointLoopOptions:
    tiny, loop = tiny_loop.OPTIONS, {"start_from": start_from, "order": order}
    return tiny.model_copy(
        update={
            "align": tiny.align.model_copy(update={"method": data.pop("method", "dpo")}),
            "data": tiny.data.model_copy(update=data),
            "loop": tiny.loop.model_copy(update=loop),
            "preferences": tiny.preferences.model_copy(update={"minimum_pairs": 5}),
        }
    )


def stages(run: Finished) -> set[tuple[str, int, str]]:
    return {step.id[:3] for step in run.record.steps}


def test_the_first_round_takes_the_imported_pairs_and_writes_no_candidate(store, tmp_path):
    location = write_array(tmp_path / "pairs.json", PAIRS)
    run = finished(store, options("pairs", pairs=str(location)))
    found = stages(run)
    assert {("import_pairs", 0, ""), ("dpo", 1, ""), ("train_retriever", 1, "")} <= found
    assert not {"reward", "pairs"} & {stage for stage, _, _ in found}
    assert not {("expand", 1, "candidates"), ("expand", 1, "answers")} & found
    opened = Store(run.record.store)
    trained = opened.manifest(run.artifact("dpo", 1).key)["inputs"]["pairs"]["key"]
    assert trained == run.artifact("import_pairs").key


def test_the_first_round_trains_on_the_imported_expansions_and_writes_none(store, tmp_path):
    location = write_lines(tmp_path / "triples" / "nq.jsonl", TRIPLES)
    given = options("expansions", collection="", triples=str(location), dev_share=0.1)
    run = finished(store, given)
    found = stages(run)
    assert ("import_expansions", 0, "") in found and ("train_retriever", 1, "") in found
    assert not {"reward", "pairs", "dpo"} & {stage for stage, _, _ in found}
    assert not {("expand", 1, name) for name in ("candidates", "answers", "training")} & found
    opened = Store(run.record.store)
    trained = opened.manifest(run.artifact("train_retriever", 1).key)["inputs"]["expansions"]["key"]
    assert trained == run.artifact("import_expansions").key


def test_what_a_run_exports_is_imported_as_it_was(first, store, tmp_path):
    """The pairs that the loop has made come back to the byte, and so does what DPO makes of them."""
    target = tmp_path / "out"
    ran = CliRunner().invoke(app, ["export", first.record.name, str(target), "--store", str(store)])
    assert ran.exit_code == 0, ran.output
    given = options("pairs", pairs=str(target / "llm_training_data"))
    assert (target / "retriever_training_data").is_dir() == (first.record.best_round == 1)
    llm = first.artifact("tiny_llm").key
    steps = single_stage("import_pairs", given, Inputs(llm=llm), store=str(store))
    pairs = first.artifact("pairs", 1)
    assert steps[0].artifact.digest == pairs.digest
    inputs = Inputs(llm=llm, pairs=steps[0].artifact.key)
    assert single_stage("dpo", given, inputs, store=str(store))[0].artifact == first.artifact(
        "dpo", 1
    )


@pytest.mark.parametrize(
    ("start_from", "data", "reason"),
    [
        ("pairs", {}, r"data\.pairs names none"),
        ("data", {"pairs": "x"}, r"data\.pairs is given, but with loop\.start_from 'data'"),
        ("expansions", {}, r"come from the field pseudo_doc of data\.triples"),
        ("expansions", {"triples": "x", "pseudo_docs": "ignore"}, r"data\.pseudo_docs is 'ignore'"),
        ("pairs", {"pairs": "x", "method": "kto"}, "learns from the rewards of all candidates"),
        ("pairs", {"pairs": "x", "order": "retriever_only"}, "data.pairs is given, but with loop"),
        ("expansions", {"triples": "x", "order": "align_only"}, "nothing is trained on that"),
    ],
)
def test_a_start_that_cannot_be_is_refused_before_anything_runs(start_from, data, reason, tmp_path):
    from flows.joint_loop import joint_loop

    with pytest.raises(DataError, match=reason):
        joint_loop(options=options(start_from, **data), store=str(tmp_path / "store"))
    assert not (tmp_path / "store" / "artifacts").exists()


def test_triples_without_a_pseudo_doc_are_no_start(tmp_path):
    rows = [{name: row[name] for name in ("query", "pos", "neg")} for row in TRIPLES]
    location = write_lines(tmp_path / "nq.jsonl", rows)
    given = options("expansions", collection="", triples=str(location), dev_share=0.1)
    with pytest.raises(DataError, match=r"no row has a pseudo_doc that is not empty"):
        single_stage("prepare", given, store=str(tmp_path / "store"))
