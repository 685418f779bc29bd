"""A small task for the retriever's tests: lay words in queries, technical words in passages.

Thing (i, j) is asked for as "lay<i> lay<j>" and described as "tech<i> tech<j>"; what an expansion
tells is one of the two technical words. Nothing relates lay to technical words before training.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from store_keys import full

from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store

SIZE = 8
THINGS = [(i, j) for i in range(SIZE) for j in range(SIZE) if i < j]
VOCABULARY = [f"{kind}{i}" for kind in ("lay", "tech") for i in range(SIZE)]
HELD_OUT = THINGS[::4]
TRAINED = [thing for thing in THINGS if thing not in HELD_OUT]


def query(thing: tuple[int, int]) -> str:
    return f"lay{thing[0]} lay{thing[1]}"


def passage(thing: tuple[int, int]) -> str:
    return f"tech{thing[0]} tech{thing[1]}"


def passage_id(thing: tuple[int, int]) -> str:
    return f"p{thing[0]}{thing[1]}"


def example(thing: tuple[int, int], negatives: list[tuple[int, int]] = []) -> dict[str, Any]:  # noqa: B006
    return {
        "query_id": f"q{thing[0]}{thing[1]}",
        "query": query(thing),
        "source": "test",
        "positive_id": passage_id(thing),
        "positive": passage(thing),
        "negative_ids": [passage_id(other) for other in negatives],
        "negatives": [passage(other) for other in negatives],
    }


EXAMPLES = pa.schema(
    [(name, pa.string()) for name in ("query_id", "query", "source", "positive_id", "positive")]
    + [(name, pa.list_(pa.string())) for name in ("negative_ids", "negatives")]
)
EXPANSIONS = pa.schema([("query_id", pa.string()), ("sample", pa.int32()), ("text", pa.string())])


def write_rows(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
    return path


def put(store: Store, key: str, folder: Path, parts: list[Artifact] | None = None) -> Artifact:
    """Make a folder of files an artifact."""
    folder.mkdir(parents=True, exist_ok=True)
    return store.commit(full(key), folder, parts or [], {"counts": {}})


def put_examples(store: Store, key: str, rows: list[dict[str, Any]]) -> Artifact:
    folder = store.scratch / "put" / key
    write_rows(folder / "retriever.parquet", rows, EXAMPLES)
    return put(store, key, folder).at("retriever.parquet")


def put_expansions(
    store: Store, key: str, rows: list[tuple[str, int, str]], rows_per_shard: int = 5
) -> Artifact:
    columns = ("query_id", "sample", "text")
    parts = []
    for start in range(0, len(rows), rows_per_shard):
        folder = store.scratch / "put" / f"{key}-{start}"
        shard = [
            dict(zip(columns, row, strict=True)) for row in rows[start : start + rows_per_shard]
        ]
        write_rows(folder / "expansions.parquet", shard, EXPANSIONS)
        parts.append(put(store, f"{key}_shard-{start}", folder))
    return put(store, key, store.scratch / "put" / key, parts)


def save_static(folder: Path, dimensions: int = 16) -> Path:
    """Save a retriever that averages random vectors of whole words."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    weights = torch.randn(len(VOCABULARY) + 1, dimensions, generator=_generator())
    weights[0] = 0
    module = StaticEmbedding(_word_tokenizer({"[UNK]": 0}), embedding_weights=weights)
    SentenceTransformer(modules=[module], device="cpu").save(str(folder), create_model_card=False)
    return folder


def save_plane(folder: Path, vectors: dict[str, list[float]]) -> Path:
    """Save a retriever that averages the given vectors of words, to compute with by hand."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    places = {word: place for place, word in enumerate(["[UNK]", *vectors])}
    tokenizer = Tokenizer(models.WordLevel(places, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    dimensions = len(next(iter(vectors.values())))
    module = StaticEmbedding(
        tokenizer, embedding_weights=torch.tensor([[0.0] * dimensions, *vectors.values()])
    )
    SentenceTransformer(modules=[module], device="cpu").save(str(folder), create_model_card=False)
    return folder


def save_bert(folder: Path, dropout: float = 0.1) -> Path:
    """Save a retriever of random weights: BERT of two layers, mean pooling."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
    tokenizer = _word_tokenizer(special)
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(special) + len(VOCABULARY),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    bert = folder.with_name(folder.name + "-bert")
    BertModel(config).save_pretrained(bert)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=32,
    ).save_pretrained(bert)
    transformer = Transformer(str(bert))
    pooling = Pooling(transformer.get_embedding_dimension(), "mean")
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save(
        str(folder), create_model_card=False
    )
    return folder


def _generator() -> Any:
    import torch

    return torch.Generator().manual_seed(0)


def _word_tokenizer(special: dict[str, int]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: len(special) + number for number, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(special | words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def mean_reciprocal_rank(folder: Path, things: list[tuple[int, int]], expanded: bool) -> float:
    """Search all passages for the things' queries with a retriever."""
    from expandr_core.encoders.encode import Encoder, encode_expanded
    from expandr_core.options.retriever import EncodingOptions, FusionOptions

    encoder = Encoder(folder, "cpu", EncodingOptions(max_tokens=32))
    expansions = [[f"tech{thing[0]}"] if expanded else [] for thing in things]
    vectors = encode_expanded(
        encoder, [query(thing) for thing in things], expansions, FusionOptions()
    )
    scores = vectors @ encoder.encode_passages([passage(thing) for thing in THINGS]).T
    own = scores[np.arange(len(things)), [THINGS.index(thing) for thing in things]]
    return float((1 / (scores >= own[:, None]).sum(axis=1)).mean())
