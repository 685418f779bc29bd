"""One stage alone finds what the loop has made of the same inputs, and says which inputs it lacks."""

import pytest
import tiny_loop

from expandr_core.errors import DataError
from flows.single_stage import Inputs, single_stage

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


def test_a_missing_or_needless_input_is_named(prefect_server, tmp_path):
    with pytest.raises(DataError, match=r"dpo needs inputs\.llm and inputs\.pairs"):
        single_stage("dpo", store=str(tmp_path))
    with pytest.raises(DataError, match=r"prepare does not read inputs\.llm"):
        single_stage("prepare", inputs=Inputs(llm="merge-1"), store=str(tmp_path))
