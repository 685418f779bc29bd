"""Leakage: test queries that were seen in training, and expansions that copy a relevant passage.

A query leaked if its text is a training query, a passage if its text, with or without its title, is a
training positive; texts are normalised as for the split (case, white space, compatible characters).
The copied part of an expansion is the words in runs of eight or more that also stand in the passage; in
scripts without spaces, these are runs of nine characters (see `expandr_core.data.terms`).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from expandr_core.data.split import normalise
from expandr_core.data.terms import terms
from expandr_core.records import Passage, passages_in, rows_with_ids

RUN_OF_WORDS = 8
COPIED = 0.5  # least share of copied words in a copy
MARKS = ("query_in_training", "passage_in_training", "copying")
_ROWS_AT_ONCE = 4096


def words(text: str) -> list[str]:
    """Return the words of a text, normalised.

    >>> words("  The BIRD's song:  3 notes")
    ['the', 'bird', 's', 'song', '3', 'notes']
    """
    return terms(normalise(text))


def verbatim_share(text: str, passages: Iterable[str], run: int = RUN_OF_WORDS) -> float:
    """Return the share of a text's words that lie in runs which it shares with a passage.

    Args:
        text: an expansion.
        passages: possible sources; each run comes from one of them.
        run: so many consecutive words are a copy, and not a common phrase.

    "red bird sings" is the one run of three, so three of six words:

    >>> verbatim_share("the red bird sings here today", ["A red bird sings."], run=3)
    0.5

    Runs that overlap count each word once; without a run, or a word, nothing is copied:

    >>> verbatim_share("a red bird sings", ["a red bird sings"], run=3), verbatim_share("", ["a"], run=3)
    (1.0, 0.0)
    >>> verbatim_share("red bird here sings", ["a red bird sings"], run=3)
    0.0
    """
    written = words(text)
    known = {each for passage in passages for each in _runs(words(passage), run)}
    copied: set[int] = set()
    for start, each in enumerate(_runs(written, run)):
        if each in known:
            copied.update(range(start, start + run))
    return len(copied) / len(written) if written else 0.0


def _runs(sequence: list[str], length: int) -> Iterator[tuple[str, ...]]:
    return zip(*(sequence[start:] for start in range(length)), strict=False)


def relevant_passages(qrels: pa.Table, corpus: Path) -> dict[str, list[Passage]]:
    """Read each query's relevant passages.

    Args:
        qrels: query_id, passage_id, relevance.
        corpus: a corpus.parquet; passages that it lacks are left out.
    """
    positive = qrels.filter(pc.field("relevance") > 0)
    queries_of: defaultdict[str, list[str]] = defaultdict(list)
    pairs = zip(positive["query_id"].to_pylist(), positive["passage_id"].to_pylist(), strict=True)
    for query_id, passage_id in pairs:
        queries_of[passage_id].append(query_id)
    found: defaultdict[str, list[Passage]] = defaultdict(list)
    for passage in passages_in(rows_with_ids(corpus, "passage_id", queries_of)):
        for query_id in queries_of[passage.passage_id]:
            found[query_id].append(passage)
    return dict(found)


def seen_in_training(
    training: Iterable[Path],
    queries: Mapping[str, str],
    relevant: Mapping[str, Sequence[Passage]],
) -> tuple[set[str], set[str]]:
    """Find the test queries that training has seen.

    Args:
        training: files with training examples: query, positive.
        queries: texts of the test queries, by id.
        relevant: their relevant passages, by the query's id.

    Returns:
        The ids of queries whose text is a training query, and of those that have a relevant passage
        which is a training positive.
    """
    by_text: defaultdict[str, set[str]] = defaultdict(set)
    by_passage: defaultdict[str, set[str]] = defaultdict(set)
    for query_id, text in queries.items():
        by_text[normalise(text)].add(query_id)
    for query_id, passages in relevant.items():
        for passage in passages:
            for text in {passage.content, passage.text}:
                by_passage[normalise(text)].add(query_id)
    by_passage.pop("", None)  # an empty passage shows nothing
    leaked, reused = set(), set()
    for path in training:
        for batch in pq.ParquetFile(path).iter_batches(
            _ROWS_AT_ONCE, columns=["query", "positive"]
        ):
            for query in set(batch["query"].to_pylist()):
                leaked |= by_text.get(normalise(query), set())
            for positive in batch["positive"].to_pylist():
                reused |= by_passage.get(normalise(positive), set())
    return leaked, reused


def summary(rows: Mapping[str, Any], shares: NDArray[np.float64], audited: bool) -> dict[str, Any]:
    """Summarise an audit.

    Args:
        rows: the columns of audit.parquet, (queries,) each.
        shares: (expansions,) the share of each that is copied.
        audited: whether the training data is known; entries about it are None if not.
    """
    marks = {**rows, "copying": rows["copied"] >= COPIED}
    gains = rows["after"] - rows["before"]
    known = MARKS if audited else MARKS[2:]
    anyhow = np.any([marks[mark] for mark in known], axis=0)

    def split(marked: NDArray[np.bool_]) -> dict[str, Any]:
        return {
            "queries": int(marked.sum()),
            "share": float(marked.mean()),
            "gain_of_these": _mean(gains[marked]),
            "gain_without": _mean(gains[~marked]),
        }

    return {
        "rule": f"copying: at least {COPIED:g} of an expansion's words lie in runs of "
        f"{RUN_OF_WORDS} or more that a relevant passage has too",
        "queries": len(gains),
        "gain": _mean(gains),
        "expansions": {
            "number": len(shares),
            "with_a_run": int((shares > 0).sum()),
            "copying": int((shares >= COPIED).sum()),
        },
        **{mark: split(marks[mark]) if mark in known else None for mark in MARKS},
        "any": split(anyhow),
    }


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if len(values) else None
