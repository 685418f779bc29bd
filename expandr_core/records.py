"""The rows that cross stages: their types and Parquet schemas, in the order of the data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

PASSAGES = pa.schema(  # corpus.parquet
    [("passage_id", pa.string()), ("title", pa.string()), ("text", pa.string())]
)
QUERIES = pa.schema(  # queries.parquet; queries of one cluster are not independent
    [("query_id", pa.string()), ("query", pa.string()), ("cluster", pa.string())]
)
QRELS = pa.schema(  # qrels.parquet; a relevance above 0 is relevant, and a grade for nDCG
    [("query_id", pa.string()), ("passage_id", pa.string()), ("relevance", pa.int32())]
)
EXAMPLES = pa.schema(  # preference.parquet, retriever.parquet: a row a query and positive
    [
        ("query_id", pa.string()),
        ("query", pa.string()),
        ("source", pa.string()),
        ("positive_id", pa.string()),
        ("positive", pa.string()),
        ("negative_ids", pa.list_(pa.string())),
        ("negatives", pa.list_(pa.string())),
    ]
)
EXPANSIONS = pa.schema(  # expansions.parquet of a shard: a row a text
    [
        ("query_id", pa.string()),
        ("sample", pa.int32()),
        ("sampling_temperature", pa.float32()),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("tokens", pa.int32()),
    ]
)
REWARDS = pa.schema(  # rewards.parquet of a shard: a row a candidate, sorted by query_id and sample
    [
        ("query_id", pa.string()),
        ("query", pa.string()),
        ("sample", pa.int32()),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("reward", pa.float64()),  # sum over the components
        ("similarity", pa.float64()),  # sum over the components
        ("tie", pa.int64()),  # seeded number that decides between equal candidates
        ("apart", pa.bool_()),  # a component tells it from the query's best candidate
    ]
)
PAIR_SIDE = (  # columns of a pair's candidate, after "chosen_" and "rejected_"
    ("text", pa.string()),
    ("sample", pa.int32()),
    ("finish_reason", pa.string()),
    ("reward", pa.float64()),
    ("similarity", pa.float64()),
)
PAIRS = pa.schema(  # pairs.parquet: a row a query, sorted by query_id
    [
        ("query_id", pa.string()),
        ("query", pa.string()),
        ("split", pa.string()),  # "train" or "dev"
        ("margin", pa.float64()),
        *((f"{side}_{name}", kind) for side in ("chosen", "rejected") for name, kind in PAIR_SIDE),
    ]
)
# of imported pairs: the user's turn as it is, or null where it is in the prompt's wording
PROMPT_TEXT = pa.field("prompt_text", pa.string())
NEGATIVES = pa.schema(  # negatives.parquet: a row a query, the nearest negative first
    [
        ("query_id", pa.string()),
        ("negative_ids", pa.list_(pa.string())),
        ("negatives", pa.list_(pa.string())),
    ]
)
RUN = pa.schema(  # run.parquet: a row a hit
    [
        ("query_id", pa.string()),
        ("passage_id", pa.string()),
        ("score", pa.float32()),
        ("rank", pa.int32()),
    ]
)
_ROWS_AT_ONCE = 4096


class Passage(NamedTuple):
    """A row of the corpus."""

    passage_id: str
    title: str
    text: str

    @property
    def content(self) -> str:
        """The text that is encoded, searched, mined and read: title and text.

        >>> Passage("1", "Wings", "They flap.").content, Passage("2", "", "They flap.").content
        ('Wings They flap.', 'They flap.')
        """
        return f"{self.title} {self.text}".strip()


class Example(NamedTuple):
    """A training row; a query with several positives has several."""

    query_id: str
    query: str
    source: str
    positive_id: str
    positive: str
    negative_ids: list[str]
    negatives: list[str]


def passages_in(rows: Any) -> list[Passage]:
    """Return the passages of a table or batch of a corpus."""
    columns = (rows[name].to_pylist() for name in Passage._fields)
    return [Passage(*row) for row in zip(*columns, strict=True)]


def rows_with_ids(
    path: Path, column: str, ids: Any, columns: Sequence[str] | None = None
) -> pa.Table:
    """Read the rows of a Parquet file whose id is among some, in the order of the file.

    Args:
        path: the file, which is read batch by batch, so that memory holds only the result.
        column: name of the column with the ids.
        ids: an Arrow array, or an iterable of strings.
        columns: columns to read; all by default.
    """
    file = pq.ParquetFile(path)
    kind = file.schema_arrow.field(column).type
    among = ids.cast(kind) if isinstance(ids, pa.Array | pa.ChunkedArray) else pa.array(ids, kind)
    batches = file.iter_batches(_ROWS_AT_ONCE, columns=columns, use_threads=False)
    rows = [pa.Table.from_batches([each]).filter(pc.field(column).isin(among)) for each in batches]
    if not rows:
        rows = [file.schema_arrow.empty_table().select(columns or file.schema_arrow.names)]
    return pa.concat_tables(rows)
