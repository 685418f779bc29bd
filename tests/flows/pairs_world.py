"""A store with queries, a language model and a retriever, small enough to make pairs in seconds."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import tiny_loop
from prefect import flow
from store_keys import full

from expandr_core.options.loop import JointLoopOptions
from expandr_core.store.run_records import Step
from expandr_core.store.store import Store
from tasks.pipeline import Pipeline
from tasks.placement import Placement
from tasks.preferences import make_pairs

QUERIES, PER_SHARD = 64, 8


def filled(folder: Path, llm: Path) -> Store:
    """Make a store with the language model, a retriever of its tokens, and queries."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tiny_models import make_tokenizer
    from torch import Generator, randn

    store = Store(str(folder))
    store.commit(
        full("tiny_llm-1"), shutil.copytree(llm, store.scratch / "llm"), [], {"counts": {}}
    )
    tokenizer = make_tokenizer()
    vectors = randn(len(tokenizer), 16, generator=Generator().manual_seed(0))
    module = StaticEmbedding(tokenizer.backend_tokenizer, embedding_weights=vectors)
    retriever = store.scratch / "retriever"
    SentenceTransformer(modules=[module], device="cpu").save(str(retriever))
    store.commit(full("tiny_retriever-1"), retriever, [], {"counts": {}})
    rows = [
        {"query_id": f"q{n:03}", "query": f"why is thing {n} grey?", "positive_id": f"p{n:03}",
         "positive": f"thing {n} is of grey text", "negative_ids": [], "negatives": []}
        for n in range(QUERIES)
    ]  # fmt: skip
    table = store.scratch / "queries"
    table.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), table / "preference.parquet")
    store.commit(full("prepare-1"), table, [], {"counts": {}})
    return store


def options(**preferences) -> JointLoopOptions:
    """Return the tiny preset's options; about half of the queries are accepted."""
    changes = {"acceptance_value": 1.05, "max_pairs": 12, "dpo_dev_share": 0} | preferences
    return tiny_loop.OPTIONS.model_copy(
        update={
            "seed": 0,
            "preferences": tiny_loop.OPTIONS.preferences.model_copy(update=changes),
            "expand": tiny_loop.OPTIONS.expand.model_copy(update={"queries_per_shard": PER_SHARD}),
        }
    )


@flow(name="pairs-of-the-world")
def pairs_of(store: str, options: JointLoopOptions, placement: Placement) -> list[Step]:
    """Make the pairs; return all steps."""
    pipeline = Pipeline(store, options, placement)
    keys = (f"{full('prepare-1')}/preference.parquet", full("tiny_llm-1"), full("tiny_retriever-1"))
    queries, llm, retriever = map(pipeline.find, keys)
    make_pairs(pipeline, queries, llm, retriever)
    return list(pipeline.steps)
