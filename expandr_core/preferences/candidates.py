"""The candidates that can be rewarded: joined with answers and examples by id, cleaned, and encoded."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from expandr_core.encoders.encode import Encoder, Vectors, encode_expanded
from expandr_core.errors import DataError
from expandr_core.options.preferences import Reward
from expandr_core.options.retriever import FusionOptions
from expandr_core.preferences.rewards import Candidates, Retrieval, score, tie_seed

Row = dict[str, Any]
Measures = NDArray[np.float64]


class Written(NamedTuple):
    """What was written for the queries of a shard.

    Attributes:
        candidates: rows of expansions.parquet.
        answers: likewise; None if the reward needs none.
        examples: with query_id, query and positive; of several of a query, the first counts first.
    """

    candidates: pa.Table
    answers: pa.Table | None
    examples: pa.Table


class Encoded(NamedTuple):
    """The queries of a shard that can be rewarded.

    Attributes:
        rows: the candidates by query.
        examples: by query, the one with the first positive first.
        own: (candidates, dimensions)
        positives: (queries, dimensions) of the first positives.
        answers: (queries, dimensions); None if the reward needs none.
        counts: of them, and of what was dropped and why.
    """

    rows: dict[str, list[Row]]
    examples: dict[str, list[Row]]
    own: Vectors
    positives: Vectors
    answers: Vectors | None
    counts: Counter[str]

    @property
    def positives_of(self) -> list[list[Row]]:
        """The examples of each query, in the order of `rows`."""
        return [self.examples[query_id] for query_id in self.rows]


def encode(written: Written, encoder: Encoder) -> Encoded:
    """Join candidates, answers and examples by query, and encode their texts.

    Raises:
        DataError: if a row is missing, or there twice.
    """
    counts: Counter[str] = Counter()
    by_query = _by_query(written.candidates, "candidate")
    examples: defaultdict[str, list[Row]] = defaultdict(list)
    for row in written.examples.to_pylist():
        examples[row["query_id"]].append(row)
    needed: list[tuple[str, Row]] = [("candidate", by_query), ("example", examples)]
    answer_of: dict[str, str] = {}
    if written.answers:
        answered = _by_query(written.answers, "answer")
        answer_of = {id_: rows[0]["text"] for id_, rows in answered.items()}
        needed.insert(1, ("answer", answer_of))
    for query_id in sorted(by_query.keys() | answer_of.keys()):
        for role, ids in needed:
            if query_id not in ids:
                raise DataError(
                    f"query {query_id!r} has no {role}; candidates, answers and examples must come "
                    "from the same queries"
                )
    kept: dict[str, list[Row]] = {}
    for query_id, rows in by_query.items():
        rows = _distinct(rows, counts)
        if written.answers and not answer_of[query_id]:
            counts["dropped_queries/empty_answer"] += 1
        elif len(rows) < 2:
            counts["dropped_queries/fewer_than_two_candidates"] += 1
        else:
            kept[query_id] = rows
    texts = [row["text"] for rows in kept.values() for row in rows]
    ends = [len(texts), len(texts) + len(kept)]
    texts += [examples[query_id][0]["positive"] for query_id in kept]
    texts += [answer_of[query_id] for query_id in kept if written.answers]
    distinct = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    vectors = encoder.encode_passages(list(distinct))[[distinct[text] for text in texts]]
    counts["queries"] += len(kept)
    counts["candidates"] += ends[0]
    own, positives, answers = np.split(vectors, ends)
    return Encoded(kept, examples, own, positives, answers if written.answers else None, counts)


def _by_query(table: pa.Table, what: str) -> dict[str, list[Row]]:
    """Group rows by query, in the order of ids and samples, however they come."""
    found: defaultdict[str, list[Row]] = defaultdict(list)
    for row in table.sort_by([("query_id", "ascending"), ("sample", "ascending")]).to_pylist():
        rows = found[row["query_id"]]
        if rows and rows[-1]["sample"] == row["sample"]:
            raise DataError(
                f"query {row['query_id']!r} has {what} {row['sample']} twice; write them again"
            )
        rows.append(row)
    return found


def _distinct(rows: list[Row], counts: Counter[str]) -> list[Row]:
    """Drop empty texts and repetitions, keeping the first sample of each text."""
    kept: dict[str, Row] = {}
    for row in rows:
        if not row["text"]:
            counts["dropped_candidates/empty"] += 1
        elif row["text"] in kept:
            counts["dropped_candidates/duplicate"] += 1
        else:
            kept[row["text"]] = row
    return list(kept.values())


def fuse_each(
    shard: Encoded, encoder: Encoder, options: FusionOptions
) -> tuple[Vectors, NDArray[np.int64]]:
    """Encode the queries, and fuse each with every one of its candidates.

    Returns:
        (queries + candidates, dimensions) the queries alone, then the candidates' fused queries; and
        the number of the query that each is of.
    """
    import torch

    from expandr_core.encoders.fusion import Fusion

    queries = [shard.examples[query_id][0]["query"] for query_id in shard.rows]
    numbers = np.arange(len(queries))
    owners = np.repeat(numbers, [len(rows) for rows in shard.rows.values()])
    alone = encoder.encode_queries(queries)
    if options.method == "vector":  # of the vectors that are there already
        fusion = Fusion.of(encoder.model, encoder.normalize, options)
        one_each = torch.ones(len(owners), dtype=torch.long)
        candidates = torch.from_numpy(shard.own)
        fused = fusion.fuse(torch.from_numpy(alone[owners]), candidates, one_each).numpy()
    else:
        texts = [[row["text"]] for rows in shard.rows.values() for row in rows]
        fused = encode_expanded(encoder, [queries[owner] for owner in owners], texts, options)
    return np.concatenate([alone, fused]), np.concatenate([numbers, owners])


def judge(
    shard: Encoded,
    encoder: Encoder,
    reward: Reward,
    weights: Mapping[str, float],
    seed: int,
    measured: tuple[Vectors, Measures] | None,
) -> list[Row]:
    """Reward the candidates of a shard, query by query; return the rows of rewards.parquet.

    Args:
        shard: the queries.
        encoder: made the vectors.
        reward: of the retriever.
        weights: of the components.
        seed: of the run, for ties.
        measured: vectors and measures of the queries alone, then of the candidates' fused queries.
    """
    rewarded: list[Row] = []
    for place, (query_id, rows) in enumerate(shard.rows.items()):
        own = slice(len(rewarded), len(rewarded) + len(rows))
        vectors, positive = shard.own[own], shard.positives[place]
        answer = None if shard.answers is None else shard.answers[place]
        compared = [*([positive] if weights["retriever"] else []), answer]
        longest = max(np.linalg.norm(each) for each in compared if each is not None)
        rounding = encoder.rounding * float(np.linalg.norm(vectors, axis=1).max() * longest)
        candidates = Candidates(vectors, positive, answer, float(np.float32(rounding)))
        found: list[Row] = [{} for _ in rows]
        if measured:
            fused, values = (each[len(shard.rows) :][own] for each in measured)
            retrieval = Retrieval(values, measured[1][place], fused)
            found = retrieval.columns(reward, encoder.rounding)
            if reward != "candidate_rank":
                candidates = candidates._replace(gains=retrieval.gains(reward, encoder.rounding))
        query = {"query": shard.examples[query_id][0]["query"]}
        scores = score(candidates, [tie_seed(seed, query_id, row["text"]) for row in rows], weights)
        rewarded += [
            {**row, **query, **each, **extra}
            for row, each, extra in zip(rows, scores, found, strict=True)
        ]
    return rewarded
