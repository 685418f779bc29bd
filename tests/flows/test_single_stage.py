"""One stage alone finds what the loop has made of the same inputs, and says which inputs it lacks."""

import pytest
import tiny_loop
from store_keys import full

from expandr_core.errors import DataError
from expandr_core.options.training import AlignOptions
from expandr_core.store.store import Store
from flows.single_stage import Inputs, single_stage
from tasks.align import rewards_of
from tasks.pipeline import Pipeline

QUERIES = "preference.parquet"


@pytest.mark.parametrize(
    ("stage", "inputs", "made"),
    [
        ("prepare", {}, ("prepare", 0, "")),
        ("candidates", {"llm": ("tiny_llm",), "queries": QUERIES}, ("expand", 1, "candidates")),
        ("answers", {"llm": ("tiny_llm",), "queries": QUERIES}, ("expand", 1, "answers")),
        ("greedy", {"llm": ("merge", 1), "queries": "test_queries.parquet"}, ("expand",)),
        (
            "preferences",
            {
                "candidates": ("expand", 1, "candidates"),
                "answers": ("expand", 1, "answers"),
                "queries": QUERIES,
                "retriever": ("tiny_retriever",),
            },
            ("audit_pairs", 1, ""),
        ),
        ("dpo", {"llm": ("tiny_llm",), "pairs": ("pairs", 1)}, ("merge", 1, "")),
        (
            "expansions",
            {"llm": ("merge", 1), "queries": "retriever.parquet"},
            ("expand", 1, "training"),
        ),
        (
            "retriever",
            {
                "retriever": ("tiny_retriever",),
                "queries": "retriever.parquet",
                "corpus": "corpus.parquet",
                "expansions": ("expand", 1, "training"),
            },
            ("train_retriever", 1, ""),
        ),
        (
            "evaluate",
            {
                "retriever": ("train_retriever", 1),
                "corpus": "corpus.parquet",
                "queries": "test_queries.parquet",
                "qrels": "test_qrels.parquet",
            },
            ("compare",),
        ),
    ],
)
def test_a_stage_alone_finds_what_the_loop_has_made(first, store, stage, inputs, made):
    prepared = first.artifact("prepare").key
    keys = {
        role: f"{prepared}/{what}" if isinstance(what, str) else first.artifact(*what).key
        for role, what in inputs.items()
    }
    steps = single_stage(stage, tiny_loop.OPTIONS, Inputs(**keys), store=str(store))
    last = steps[-1]
    assert last.id.stage == made[0]
    if len(made) > 1:  # the loop has the same
        assert last.artifact.key == first.artifact(*made).key


@pytest.mark.parametrize(
    ("method", "stages"),
    [
        ("sft", ["sft", "merge"]),
        ("kto", ["kto", "merge"]),
        ("sft+dpo", ["sft", "dpo"]),
    ],
)
def test_the_method_of_alignment_chooses_the_stages(first, store, method, stages):
    merge = stages[-1] == "merge"
    options = tiny_loop.OPTIONS.model_copy(
        update={
            "align": AlignOptions(method=method, sft_epochs=1),
            "dpo": tiny_loop.OPTIONS.dpo.model_copy(update={"epochs": 1, "merge": merge}),
        }
    )
    llm, pairs = first.artifact("tiny_llm"), first.artifact("pairs", 1)
    steps = single_stage("dpo", options, Inputs(llm=llm.key, pairs=pairs.key), store=str(store))
    assert [step.id.stage for step in steps] == stages
    if method == "sft+dpo":
        inputs = Store(str(store)).manifest(steps[1].artifact.key)["inputs"]
        assert inputs["adapter"]["key"] == steps[0].artifact.key


def test_kto_refuses_pairs_without_rewards(tmp_path):
    imported = Store(str(tmp_path))
    folder = imported.scratch / "pairs"
    folder.mkdir(parents=True)
    (folder / "pairs.parquet").touch()
    pairs = imported.commit(full("import_pairs-1"), folder, [], {"counts": {}, "inputs": {}})
    options = tiny_loop.OPTIONS.model_copy(update={"align": AlignOptions(method="kto")})
    with pytest.raises(
        DataError, match=r"these pairs were imported; set align\.method to dpo, sft"
    ):
        rewards_of(Pipeline(str(tmp_path), options), pairs)


def test_a_missing_or_needless_input_is_named(prefect_server, tmp_path):
    with pytest.raises(DataError, match=r"dpo needs inputs\.llm and inputs\.pairs"):
        single_stage("dpo", store=str(tmp_path))
    with pytest.raises(DataError, match=r"prepare does not read inputs\.llm"):
        single_stage("prepare", inputs=Inputs(llm="merge-1"), store=str(tmp_path))
