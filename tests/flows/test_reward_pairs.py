"""Every reward makes pairs under Prefect, and only what it needs is made."""

import pytest
from pairs_world import filled, options
from prefect import flow
from store_keys import full

from expandr_core.options.loop import JointLoopOptions
from expandr_core.store.run_records import Step
from tasks.data import Data
from tasks.pipeline import Pipeline
from tasks.preferences import make_pairs, reward_corpus

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(scope="module")
def store(prefect_server, llm_folder, tmp_path_factory):
    return filled(tmp_path_factory.mktemp("rewards") / "store", llm_folder)


@flow(name="rewarded-pairs")
def pairs_of(store: str, options: JointLoopOptions) -> list[Step]:
    pipeline = Pipeline(store, options)
    llm, retriever = (pipeline.find(full(key)) for key in ("tiny_llm-1", "tiny_retriever-1"))
    queries = pipeline.find(f"{full('prepare-1')}/preference.parquet")
    data = Data(None, queries, None, queries, queries, {})  # without a collection
    make_pairs(pipeline, queries, llm, retriever, reward_corpus(pipeline, data))
    return list(pipeline.steps)


@pytest.mark.parametrize(
    ("changes", "made"),
    [
        ({}, "candidates answers reward pairs audit_pairs"),
        ({"reward": "similarity"}, "candidates answers reward pairs audit_pairs"),
        (
            {"reward": "corpus_rank"},
            "example_passages encode candidates answers reward pairs audit_pairs",
        ),
        (
            {"reward": "ndcg_delta", "self_weight": 0.0},
            "example_passages encode candidates reward pairs audit_pairs",
        ),
        (
            {"reward": "corpus_rank", "lazy": True, "max_pairs": 12},
            "example_passages encode candidates answers reward pairs audit_pairs",
        ),
    ],
)
def test_each_reward_makes_pairs(store, changes, made):
    usual = {"acceptance_value": -9, "max_pairs": 1000, "minimum_pairs": 1}
    steps = pairs_of(store.url, options(**usual | changes))
    names = [step.id.name if step.id.stage == "expand" else step.id.stage for step in steps]
    assert list(dict.fromkeys(names)) == made.split()
    audit = next(step.artifact for step in steps if step.id.stage == "audit_pairs")
    assert audit.counts["pairs"] > 10
