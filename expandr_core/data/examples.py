"""Training examples: a query, one of its positives, and the negatives given with them."""

from collections import defaultdict
from typing import NamedTuple

from expandr_core.data.collection import Qrel, Query
from expandr_core.data.rows import Reader
from expandr_core.data.split import SPLIT_NAMES, Split, SplitName
from expandr_core.records import Example


class SplitJudgements(NamedTuple):
    """Examples by split, sorted by query and positive, and every judgement of the dev split."""

    examples: dict[SplitName, list[Example]]
    dev: list[Qrel]


def split_judgements(
    reader: Reader,
    split: Split,
    queries: dict[str, Query],
    judgements: list[Qrel],
    positives: dict[str, str],
) -> SplitJudgements:
    """Turn training judgements into examples, split them, and count what is dropped.

    Args:
        reader: counts the queries without a relevant passage, and empty relevant passages.
        split: assigns the queries.
        queries: by id.
        judgements: of the training queries.
        positives: the relevant passages' content, by id.
    """
    judged: defaultdict[str, list[Qrel]] = defaultdict(list)
    for row in sorted(judgements):
        judged[row.query_id].append(row)
    result = SplitJudgements({name: [] for name in SPLIT_NAMES}, [])
    for query_id, rows in judged.items():
        relevant = [row.passage_id for row in rows if row.relevance > 0]
        filled = [passage_id for passage_id in relevant if positives[passage_id]]
        if len(filled) < len(relevant):
            empty = len(relevant) - len(filled)
            reader.count("dropped/training judgements of empty passages", empty)
        if not filled:
            reader.count("dropped/training queries without a relevant passage")
            continue
        text = queries[query_id].text
        name = split.of(text)
        if name is None:
            continue
        if name == "dev":
            result.dev.extend(rows)
        result.examples[name].extend(
            Example(query_id, text, "train", passage_id, positives[passage_id], [], [])
            for passage_id in filled
        )
    return result
