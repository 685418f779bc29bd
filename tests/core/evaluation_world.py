"""A small collection, a retriever of whole words, and a store, for the tests of evaluation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from store_keys import full

from expandr_core.options.base import Options
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.runner import make_spec, run_stage
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store

WORDS = ["red", "blue", "bird", "song", "river", "stone"]


def save_static_retriever(folder: Path, words: list[str], dimensions: int = 8) -> Path:
    """Save a retriever that averages fixed random vectors of whole words."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: index for index, word in enumerate(["[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    weights = torch.randn(len(vocabulary), dimensions, generator=torch.Generator().manual_seed(0))
    weights[0] = 0
    SentenceTransformer(
        modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu"
    ).save(str(folder))
    return folder


def put(
    store: Store,
    key: str,
    tables: dict[str, pa.Table],
    parts: Sequence[Artifact] = (),
    texts: dict[str, str] | None = None,
) -> Artifact:
    """Make an artifact of tables and texts, by file name."""
    folder = store.scratch / "put" / key
    folder.mkdir(parents=True)
    for name, content in tables.items():
        pq.write_table(content, folder / name, row_group_size=3)
    for name, text in (texts or {}).items():
        (folder / name).write_text(text)
    return store.commit(full(key), folder, list(parts), {"counts": {}})


def put_expansions(store: Store, key: str, shards: list[list[tuple[str, int, str]]]) -> Artifact:
    """Make an expand artifact of (query_id, sample, text) rows, shard by shard."""
    names = ["query_id", "sample", "text"]
    parts = [
        put(store, f"{key}_shard-{place}", {"expansions.parquet": table(names, rows)})
        for place, rows in enumerate(shards)
    ]
    return put(store, key, {}, parts)


def table(names: list[str], rows: list[tuple]) -> pa.Table:
    """Make a table of rows."""
    columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in names]
    return pa.table(columns, names=names)


def make(
    store: Store, stage: str, options: Options, inputs: dict[str, Artifact], seed: int = 0
) -> tuple[Artifact, Path]:
    """Run a stage; return its artifact and folder."""
    spec = make_spec(stage, options, inputs, seed=seed, device="cpu")
    artifact = run_stage(spec, store, no_progress)
    return artifact, store.local(artifact)


def of_shards(store: Store, artifact: Artifact, name: str) -> dict[str, list[Any]]:
    """Read a Parquet file of each shard of an artifact as one table of lists."""
    shards = [store.local(part) / name for part in store.shards(artifact)]
    return pa.concat_tables([pq.read_table(path) for path in shards]).to_pydict()


def columns(path: Path) -> dict[str, list[Any]]:
    """Read a Parquet file as lists."""
    return pq.read_table(path).to_pydict()
