"""The gate: worse models are refused, better ones promoted, and a moved champion is tested again."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_loop
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort
from store_keys import full

from expandr_core.errors import DataError
from expandr_core.options.loop import JointLoopOptions
from expandr_core.options.promotion import PromotionOptions
from expandr_core.records import EXAMPLES
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.runner import make_spec, run_stage
from expandr_core.stages import train_retriever
from expandr_core.store.artifacts import Artifact
from expandr_core.store.registered_model import Author
from expandr_core.store.registry import promote, read_model
from expandr_core.store.store import Store
from flows.champions import version_of
from flows.promotion import check_promotion, faults_of, judge_run
from flows.run_record import RunRecord, find_run
from tasks.data import prepare_data
from tasks.pipeline import Pipeline

ASKED = PromotionOptions(enabled=True, level=0.3, seeds=1)  # three clusters give p = 0.25 at best
OPTIONS = tiny_loop.OPTIONS.model_copy(update={"promotion": ASKED})


@flow(name="gate")
def gate(store: str, run: RunRecord, meanwhile: Callable[[], None] | None = None) -> list[str]:
    """Judge a run that has its record; return the titles of the steps."""
    pipeline = Pipeline(store, OPTIONS)
    data = prepare_data(pipeline)
    if meanwhile:
        pipeline.steps.after_each(meanwhile)
    judge_run(pipeline, data, lambda: run)
    return [step.title for step in pipeline.steps]


def decided() -> str:
    """Return what Prefect shows of the latest decision."""
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=["promotion"]))
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=wanted, sort=ArtifactSort.UPDATED_DESC)
    return str(found[0].data)


def trained_on(store: Store, first: RunRecord, name: str, rows: list[dict]) -> RunRecord:
    """Record a run that differs from the first in its retriever, trained on these rows."""
    folder = store.scratch / name
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, EXAMPLES), folder / "retriever.parquet")
    made = store.commit(full(f"prepare-{name}"), folder, [], {"counts": {}})
    options = tiny_loop.OPTIONS.model_copy(
        update={"training": tiny_loop.OPTIONS.training.model_copy(update={"epochs": 40})}
    )
    spec = make_spec(
        "train_retriever",
        train_retriever.OPTIONS.of(options.without_expansions),
        {"retriever": first.models["retriever"], "examples": made.at("retriever.parquet")},
    )
    retriever = run_stage(spec, store, no_progress)
    record = first.model_copy(
        update={"name": name, "models": first.models | {"retriever": retriever}}
    )
    store.write_record(name, record.model_dump(mode="json"))
    return record


def dev_rows(store: Store, prepared: Artifact) -> list[dict]:
    """Return the dev queries with their relevant passages, as training examples."""
    folder = store.local(prepared)
    rows = {
        name: pq.read_table(folder / f"{name}.parquet").to_pylist()
        for name in ("dev_queries", "dev_qrels", "corpus")
    }
    queries = {row["query_id"]: row["query"] for row in rows["dev_queries"]}
    texts = {row["passage_id"]: row["text"] for row in rows["corpus"]}
    return [
        {"query_id": row["query_id"], "query": queries[row["query_id"]], "source": "dev",
         "positive_id": row["passage_id"], "positive": texts[row["passage_id"]],
         "negatives": [], "negative_ids": []}
        for row in rows["dev_qrels"]
    ]  # fmt: skip


def test_a_retriever_of_shuffled_positives_is_refused_and_a_better_one_promoted(first, store):
    opened = Store(str(store))
    run = find_run(opened, "latest")
    assert run
    steps = gate(str(store), run)
    assert len(steps) == 2 and "There was no champion" in decided()
    assert read_model(opened, "demo").aliases == {"champion": 1, "candidate": 1}

    rows = dev_rows(opened, first.artifact("prepare"))
    order = np.roll(np.arange(len(rows)), 5)
    positives = [{name: rows[n][name] for name in ("positive", "positive_id")} for n in order]
    shuffled = [row | other for row, other in zip(rows, positives, strict=True)]
    worse = trained_on(opened, run, "20270101T000000-worse", shuffled)
    gate(str(store), worse)
    model = read_model(opened, "demo")
    assert model.aliases == {"champion": 1, "candidate": 2}
    refused = model.history[-1]
    assert (refused.alias, refused.action, refused.before) == ("champion", "refused", 1)
    assert refused.gate["dev"]["difference"] < 0 and "that is no gain" in refused.reason
    assert refused.reason in decided() and "demo: refused" in decided()
    assert opened.lookup(refused.gate["report"]["key"])

    better = trained_on(opened, run, "20270102T000000-better", rows)
    by_hand = []

    def meanwhile() -> None:
        if len(by_hand) < 4:  # the test of the gate has begun
            by_hand.append(1)
        elif len(by_hand) == 4:
            by_hand.append(promote(opened, "demo", version_of(opened, worse, "me", {}), "champion",
                                   Author("me", "by hand")))  # fmt: skip

    steps = gate(str(store), better, meanwhile)
    assert [each for each in steps if each.startswith("compare")] == [
        "compare with the champion, version 1", "compare with the champion, version 2"
    ]  # fmt: skip
    model = read_model(opened, "demo")
    assert model.aliases == {"champion": 3, "candidate": 3}
    moved = model.history[-1]
    assert (moved.before, moved.after, moved.action) == (2, 3, "promoted")
    assert moved.gate["dev"]["difference"] > 0 and moved.gate["dev"]["corrected_p"] <= 0.25
    assert "against version 2" in moved.reason and "demo: promoted" in decided()

    gate(str(store), better)
    assert read_model(opened, "demo") == model
    assert "The models are those of version 3, the champion" in decided()

    folder = opened.scratch / "corpus"
    folder.mkdir()
    passages = pq.read_table(opened.local(run.models["corpus"]))
    pq.write_table(passages.slice(1), folder / "corpus.parquet")
    changed = opened.commit(full("prepare-changed"), folder, [], {"counts": {}})
    models = better.models | {"corpus": changed.at("corpus.parquet")}
    again = better.model_copy(update={"name": "20270103T000000-changed", "models": models})
    opened.write_record(again.name, again.model_dump(mode="json"))
    gate(str(store), again)
    assert read_model(opened, "demo").aliases["champion"] == 4
    assert "those of version 3, the champion, with the corpus of today" in decided()


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, ""),
        ({"difference": 0.019}, "the gain is below promotion.minimum_gain, 0.02"),
        ({"corrected_p": 0.05}, "the gain is not significant at the level 0.05"),
        ({"effect": "too few", "corrected_p": 1.0}, "4 observations are too few to tell at 0.05"),
        ({"difference": -0.1, "corrected_p": 0.001}, "that is no gain"),
        ({"difference": 0.0, "corrected_p": 1.0}, "that is no gain"),
    ],
)
def test_a_candidate_has_to_show_a_gain(changes, fault):
    test = {"difference": 0.02, "corrected_p": 0.049, "effect": "better", "clusters": 4} | changes
    assert faults_of({"dev": test}, PromotionOptions(minimum_gain=0.02)) == (
        [fault] if fault else []
    )


def test_a_candidate_may_lose_little_on_other_collections():
    own = {"difference": 0.02, "corrected_p": 0.01, "effect": "better", "clusters": 40}
    asked = PromotionOptions(tolerance={"scifact": 0.01, "law=data/cases": 0.0})
    lost = {"scifact": {"difference": -0.01}, "law": {"difference": -0.001}}
    assert faults_of({"dev": own, **lost}, asked) == [
        "-0.0010 on law is more than the tolerated loss of 0"
    ]


def test_a_gate_that_cannot_be_is_refused_before_anything_runs(tmp_path):
    from flows.joint_loop import joint_loop

    for collection, fault in (("scifakt", "unknown dataset 'scifakt'"), ("./dev", "otherwise")):
        asked = PromotionOptions(enabled=True, tolerance={collection: 0.01})
        check_promotion(asked.model_copy(update={"enabled": False}))
        with pytest.raises(DataError, match=fault):
            joint_loop(options=JointLoopOptions(promotion=asked), store=str(tmp_path / "store"))
    assert not Path(tmp_path, "store").exists()
