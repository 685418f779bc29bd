"""The rows that cross stages: every Parquet schema, in the order of the data."""

import pyarrow as pa

REWARDS = pa.schema(  # rewards.parquet: a row a candidate, sorted by query_id and sample
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
