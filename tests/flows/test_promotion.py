"""The gate: worse models are refused, better ones promoted, and a moved champion is tested again.

python tests/flows/test_promotion.py STORE RUN    runs a gate in a process of its own
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_loop
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort
from prefect.settings import get_current_settings
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
from expandr_core.store.run_records import Step
from expandr_core.store.store import Store
from flows.champions import version_of
from flows.plan import plan
from flows.promotion import check_promotion, faults_of, judge_run
from flows.run_record import RunRecord, find_run
from tasks.data import prepare_data
from tasks.pipeline import Pipeline

ASKED = PromotionOptions(enabled=True, level=0.3, seeds=1)  # three clusters give p = 0.25 at best
OPTIONS = tiny_loop.OPTIONS.model_copy(update={"promotion": ASKED})


@flow(name="gate")
def gate(
    store: str,
    run: RunRecord,
    meanwhile: Callable[[], None] | None = None,
    asked: PromotionOptions = ASKED,
) -> list[Step]:
    """Judge a run that has its record; return the steps."""
    options = OPTIONS.model_copy(update={"evaluate": run.options.evaluate, "promotion": asked})
    pipeline = Pipeline(store, options)
    data = prepare_data(pipeline)
    if meanwhile:
        pipeline.steps.after_each(meanwhile)
    judge_run(pipeline, data, lambda: run)
    return list(pipeline.steps)


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


def shuffled(rows: list[dict]) -> list[dict]:
    """Give each query the relevant passage of another one."""
    others = [rows[n] for n in np.roll(np.arange(len(rows)), 5)]
    names = ("positive", "positive_id")
    return [
        row | {name: other[name] for name in names} for row, other in zip(rows, others, strict=True)
    ]


def write_beir(folder: Path, store: Store, corpus: Artifact, rows: list[dict]) -> str:
    """Write a collection that judges the positives of some rows relevant; return its name."""
    (folder / "qrels").mkdir(parents=True)
    passages = pq.read_table(store.local(corpus)).to_pylist()
    for name, lines in {
        "corpus": [
            {"_id": row["passage_id"], "title": "", "text": row["text"]} for row in passages
        ],
        "queries": [{"_id": row["query_id"], "text": row["query"]} for row in rows],
    }.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    judged = [f"{row['query_id']}\t{row['positive_id']}\t1\n" for row in rows]
    (folder / "qrels" / "test.tsv").write_text("".join(["query-id\tcorpus-id\tscore\n", *judged]))
    return f"other={folder}"


def test_a_loss_on_another_collection_is_more_than_is_tolerated_or_not(first, store, tmp_path):
    """The champion knows the other collection, the candidate the dev queries."""
    opened = Store(str(store))
    run = find_run(opened, "latest")
    assert run
    rows = dev_rows(opened, first.artifact("prepare"))
    other = write_beir(tmp_path / "beir", opened, run.models["corpus"], shuffled(rows))
    gate(str(store), trained_on(opened, run, "20270101T000000-champion", shuffled(rows)))
    candidate = trained_on(opened, run, "20270102T000000-candidate", rows)

    asked = ASKED.model_copy(update={"tolerance": {other: 0.01}})
    steps = gate(str(store), candidate, asked=asked)
    model = read_model(opened, "demo")
    assert model.aliases == {"champion": 1, "candidate": 2}
    refused = model.history[-1]
    assert refused.gate["dev"]["difference"] > 0 > refused.gate["other"]["difference"] + 0.01
    lost = f"{refused.gate['other']['difference']:+.4f} on other is more than the tolerated loss"
    assert lost in refused.reason and lost in decided()

    options = OPTIONS.model_copy(update={"promotion": asked})
    planned: Any = plan(options=options, store=str(store))
    of_gate = [each.id for each in planned.steps if each.id.name.startswith("promotion/1/")]
    assert {each.name.removeprefix("promotion/1/") for each in of_gate if each.stage == "evaluate"} == {
        "dev/champion/0", "other/champion/0", "other/candidate/0"  # the run has the fourth itself
    }  # fmt: skip
    assert {each for each in of_gate if each.stage == "compare"} == {
        each.id for each in steps if each.id.stage == "compare"
    }

    gate(str(store), candidate, asked=asked.model_copy(update={"tolerance": {other: 1.0}}))
    assert read_model(opened, "demo").aliases["champion"] == 2


def test_the_champion_compares_vectors_as_in_its_own_run_not_as_in_the_candidates(first, store):
    opened = Store(str(store))
    run = find_run(opened, "latest")
    assert run
    gate(str(store), run)
    by_dot = run.options.evaluate.model_copy(update={"similarity": "dot"})
    options = run.options.model_copy(update={"evaluate": by_dot})
    candidate = run.model_copy(update={"name": "20270101T000000-dot", "options": options})
    opened.write_record(candidate.name, candidate.model_dump(mode="json"))
    used = {
        each.id.name.split("/")[-2]: opened.manifest(each.artifact.key)["options"]["encoding"]
        for each in gate(str(store), candidate)
        if each.id.stage == "evaluate"
    }
    assert used["candidate"]["similarity"] == "dot"
    assert used["champion"]["similarity"] == run.options.measured_retriever.encoding.similarity


def test_two_gates_in_two_processes_leave_one_champion_that_each_was_tested_against(first, store):
    opened = Store(str(store))
    run = find_run(opened, "latest")
    assert run
    gate(str(store), run)
    rows = dev_rows(opened, first.artifact("prepare"))
    names = ["20270101T000000-better", "20270102T000000-good"]
    for name, own in zip(names, (rows, rows[: len(rows) * 2 // 3]), strict=True):
        trained_on(opened, run, name, own)
    command = [sys.executable, __file__, str(store)]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "PREFECT_API_URL": str(get_current_settings().api.url),
    }
    processes = [subprocess.Popen([*command, name], env=environment) for name in names]
    assert [process.wait(900) for process in processes] == [0, 0]
    model = read_model(opened, "demo")
    by_gates = model.history[1:]
    assert {model.version(move.after).run for move in by_gates if move.after} <= {run.name, *names}
    champion = 1
    for move in by_gates:
        assert move.before == champion and f"against version {champion} " in move.reason
        champion = move.after if move.action == "promoted" else champion
    assert model.aliases["champion"] == champion > 1 and len(by_gates) == 2


def test_a_retriever_of_shuffled_positives_is_refused_and_a_better_one_promoted(first, store):
    opened = Store(str(store))
    run = find_run(opened, "latest")
    assert run
    steps = gate(str(store), run)
    assert len(steps) == 2 and "There was no champion" in decided()
    assert read_model(opened, "demo").aliases == {"champion": 1, "candidate": 1}

    rows = dev_rows(opened, first.artifact("prepare"))
    worse = trained_on(opened, run, "20270101T000000-worse", shuffled(rows))
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
    assert [each.title for each in steps if each.id.stage == "compare"] == [
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


if __name__ == "__main__":
    record = find_run(Store(sys.argv[1]), sys.argv[2])
    assert record
    gate(sys.argv[1], record)
