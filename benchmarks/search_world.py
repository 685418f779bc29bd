"""A large encoded corpus for the benchmarks mining and search, with texts, queries and qrels.

Passages gather around 2,000 topics. A static model gives queries their vectors, so that encoding them
takes no time. The files are those that the stages read, today and at the former commit.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers

from expandr_core.encoders.vector_cache import digests_of, write_passages
from expandr_core.records import EXAMPLES

TOPICS, WORDS, WORDS_OF_TOPIC, DIMENSIONS, SHARD = 2000, 4096, 8, 768, 8192
_NOISE = 1.2  # length of a passage's own part, relative to that of its topic's
_SENTENCES = 20_000


def make_world(folder: Path, passages: int, queries: int) -> None:
    """Write corpus, shards of vectors, model, training examples, queries and qrels below a folder.

    A folder that has such a world already stays as it is.
    """
    said = json.dumps({"passages": passages, "queries": queries})
    done = folder / "world.json"
    if done.exists() and done.read_text() == said:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    words = random.normal(size=(1 + WORDS, DIMENSIONS)).astype(np.float32)
    topics = random.integers(1, 1 + WORDS, (TOPICS, WORDS_OF_TOPIC))
    _save_model(folder / "model", words)
    _write_corpus(folder, random, words[topics].mean(axis=1), passages)
    _write_queries(folder, random, topics, queries, passages)
    done.write_text(said)


def _save_model(folder: Path, words: np.ndarray) -> None:
    names = {"[UNK]": 0} | {f"w{number}": number for number in range(1, 1 + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(names, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    module = StaticEmbedding(tokenizer, embedding_weights=torch.from_numpy(words))
    SentenceTransformer(modules=[module], device="cpu").save(str(folder), create_model_card=False)


def _write_corpus(
    folder: Path, random: np.random.Generator, topics: np.ndarray, passages: int
) -> None:
    sentences = [
        " ".join(f"w{number}" for number in random.integers(1, 1 + WORDS, 18))
        for _ in range(_SENTENCES)
    ]
    schema = pa.schema([(name, pa.string()) for name in ("passage_id", "title", "text")])
    length = np.linalg.norm(topics, axis=1).mean()
    with pq.ParquetWriter(folder / "corpus.parquet", schema, compression="zstd") as writer:
        for start in range(0, passages, SHARD):
            count = min(SHARD, passages - start)
            ids = [f"p{number:08}" for number in range(start, start + count)]
            chosen = random.integers(0, _SENTENCES, (count, 4)).tolist()
            texts = [
                f"{id_} {' '.join(sentences[number] for number in own)}"
                for id_, own in zip(ids, chosen, strict=True)
            ]
            writer.write_table(pa.table([ids, [""] * count, texts], schema=schema))
            noise = random.standard_normal((count, DIMENSIONS), np.float32)
            vectors = topics[random.integers(0, TOPICS, count)]
            vectors = vectors + noise * (_NOISE * length / DIMENSIONS**0.5)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            shard = folder / "shards" / f"{start // SHARD:05}"
            shard.mkdir(parents=True)
            np.save(shard / "vectors.npy", vectors.astype(np.float16))
            write_passages(shard / "passages.parquet", pa.array(ids), digests_of(texts))


def _write_queries(
    folder: Path, random: np.random.Generator, topics: np.ndarray, queries: int, passages: int
) -> None:
    """Write queries of some words of a topic and one other; each has one passage as its positive."""
    ids = [f"q{number:08}" for number in range(queries)]
    own = topics[random.integers(0, TOPICS, queries)]
    chosen = np.concatenate([own[:, :6], random.integers(1, 1 + WORDS, (queries, 1))], axis=1)
    texts = [" ".join(f"w{number}" for number in row) for row in chosen.tolist()]
    positives = sorted(random.integers(0, passages, queries).tolist())
    text_of = _texts_at(folder / "corpus.parquet", set(positives))
    rows = [
        (query_id, text, "bench", f"p{number:08}", text_of[number], [], [])
        for query_id, text, number in zip(ids, texts, positives, strict=True)
    ]
    table = pa.Table.from_pylist(
        [dict(zip(EXAMPLES.names, row, strict=True)) for row in rows], schema=EXAMPLES
    )
    pq.write_table(table, folder / "retriever.parquet")
    columns = {"query_id": ids, "query": texts, "cluster": [""] * queries}
    pq.write_table(pa.table(columns), folder / "queries.parquet")
    judged = {
        "query_id": ids,
        "passage_id": [row[3] for row in rows],
        "relevance": pa.array([1] * queries, pa.int32()),
    }
    pq.write_table(pa.table(judged), folder / "qrels.parquet")


def _texts_at(corpus: Path, numbers: set[int]) -> dict[int, str]:
    start, found = 0, {}
    for batch in pq.ParquetFile(corpus).iter_batches(columns=["text"]):
        here = [number for number in numbers if start <= number < start + len(batch)]
        found |= {number: batch["text"][number - start].as_py() for number in here}
        start += len(batch)
    return found


def shards_of(folder: Path) -> list[Path]:
    """Return the folders of the shards, in order."""
    return sorted((folder / "shards").iterdir())


def read_shards(folder: Path) -> Iterator[torch.Tensor]:
    """Yield the vectors of each shard."""
    for shard in shards_of(folder):
        yield torch.from_numpy(np.load(shard / "vectors.npy", mmap_mode="c"))
