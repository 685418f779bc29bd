"""Training examples: a query, one of its positives, and the negatives given with them."""

from collections import defaultdict
from typing import NamedTuple

from expandr_core.data.collection import Qrel, Query
from expandr_core.data.rows import Reader
from expandr_core.data.split import PARTS, Part, Split
from expandr_core.records import Example


class SplitJudgements(NamedTuple):
    """The examples by part, sorted by query and positive, and all judgements of the dev part."""

    examples: dict[Part, list[Example]]
    dev: list[Qrel]


def split_judgements(
    reader: Reader,
    split: Split,
    queries: dict[str, Query],
    judgements: list[Qrel],
    positives: dict[str, str],
) -> SplitJudgements:
    """Make examples of training judgements and split them; count what is dropped.

    Args:
        reader: counts the queries without a relevant passage, and empty relevant passages.
        split: says which part a query belongs to.
        queries: by id.
        judgements: of the training queries.
        positives: the relevant passages' content, by id.
    """
    judged: defaultdict[str, list[Qrel]] = defaultdict(list)
    for row in sorted(judgements):
        judged[row.query_id].append(row)
    result = SplitJudgements({part: [] for part in PARTS}, [])
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
        part = split.part(text)
        if part is None:
            continue
        if part == "dev":
            result.dev.extend(rows)
        result.examples[part].extend(
            Example(query_id, text, "train", passage_id, positives[passage_id], [], [])
            for passage_id in filled
        )
    return result
