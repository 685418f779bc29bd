"""The rows that training triples are written in, by whichever library they were written for.

query, positive, negative                       strings, or lists of them
anchor, positive, negative, negative_1, ...     sentence-transformers, mine_hard_negatives
query, pos, neg                                 lists: FlagEmbedding
query, positive_passages, negative_passages     lists of title and text: Tevatron
query and the others as [instruction, text]     E5's data; the instruction is left out

Every positive of a row goes with every negative of it. A field that looks like one of these and is none
is refused: a row must not lose its negatives because they have another name.
"""

import re
from typing import Any, NamedTuple

from expandr_core.data.fields import BadRow, checked_text, text_field

_NAMES = {
    "query": ("query", "anchor"),
    "positive": ("positive", "positives", "pos", "positive_passages"),
    "negative": ("negative", "negatives", "neg", "hard_negatives", "negative_passages"),
}
_ELSEWHERE = {
    "query": ("question", "query_text", "sentence1", "input", "text"),
    "positive": ("answer", "document", "passage", "context", "response", "sentence2"),
}
_NUMBERED = re.compile(r"negative_[0-9]+")
_LIKE_A_TEXT = re.compile(
    r"(.*[_-]|hard|random|easy|mined)?(neg|pos)(s|itives?|atives?)?([_-].*|[0-9]*|passages?|docs?|documents?|texts?)"
    r"|(hn|distractors?|rejected|(non|ir)[_-]?relevant)([_-].*)?",
    re.IGNORECASE,
)
_BESIDE_TEXTS = re.compile(r".*[_-](scores?|ids?)", re.IGNORECASE)


class Triple(NamedTuple):
    """A query, a passage that answers it and, unless it is empty, one that does not."""

    query: str
    positive: str
    negative: str


class _Query(NamedTuple):
    """A query; `instruction` is None unless it was written as [instruction, text]."""

    instruction: str | None
    text: str


def triples_of(record: dict[str, Any]) -> tuple[list[Triple], bool]:
    """Return the triples of a row, and whether an instruction was left out of it.

    Raises:
        BadRow: if a text is missing or empty, or it cannot be told what a field is.

    >>> triples_of({"anchor": "q", "positive": "p", "negative_1": "a", "negative_2": "b"})[0]
    [Triple(query='q', positive='p', negative='a'), Triple(query='q', positive='p', negative='b')]
    >>> triples_of({"query": "q", "pos": ["p", "o"], "neg": []})[0]
    [Triple(query='q', positive='p', negative=''), Triple(query='q', positive='o', negative='')]
    """
    query = _query(record)
    positive = _name_of(record, "positive")
    negatives = [name for name in record if _NUMBERED.fullmatch(name)]
    if any(name in record for name in _NAMES["negative"]):
        negatives.append(_name_of(record, "negative"))
    for name, value in record.items():
        known = name in (positive, *negatives) or _BESIDE_TEXTS.fullmatch(name)
        if not known and value and _LIKE_A_TEXT.fullmatch(name) and not _is_number(value):
            raise BadRow(
                f"{name} is not understood", 'rename it to "positive" or "negative", or delete it'
            )
    right = _texts(positive, record[positive], query.instruction)
    wrong = [text for name in negatives for text in _texts(name, record[name], query.instruction)]
    if not negatives:
        right, wrong = _labelled(record, positive, right)
    right, wrong = [text for text in right if text], [text for text in wrong if text]
    if not right:
        empty = "null" if record[positive] is None else "empty"
        raise BadRow(f"{positive} is {empty}", "fill it in, or delete the row")
    rows = [Triple(query.text, each, other) for each in right for other in wrong or [""]]
    return rows, query.instruction is not None


def _name_of(record: dict[str, Any], what: str) -> str:
    """Return the one field that holds the query, the positives, or the negatives."""
    found = [name for name in _NAMES[what] if name in record]
    if len(found) > 1:
        raise BadRow(f"both {found[0]} and {found[1]}", "keep one of the two fields")
    if not found:
        for name in _ELSEWHERE[what]:
            if name in record:
                raise BadRow(f"no {what}", f'rename "{name}" to "{what}", if it is one')
        raise BadRow(f"no {what}", f'add "{what}"')
    return found[0]


def _query(record: dict[str, Any]) -> _Query:
    name = _name_of(record, "query")
    value = record[name]
    instruction = None
    if isinstance(value, list) and 1 <= len(value) <= 2:
        *instructions, value = value
        instruction = checked_text(instructions[0], name).strip() if instructions else None
    text = checked_text(value, name).strip()
    if not text:
        raise BadRow(f"{name} is empty", "fill it in, or delete the row")
    return _Query(instruction, text)


def _texts(name: str, value: Any, instruction: str | None) -> list[str]:
    """Return the texts of a field, without white space around them; "" where there is none."""
    if isinstance(value, list):
        if instruction is None or not _is_pair(value):
            return [text for each in value for text in _texts(name, each, instruction)]
        if value[0].strip() not in ("", instruction):
            raise BadRow(
                f"{name} may be two texts, or [instruction, text] as the query",
                "write the texts without instructions",
            )
        value = value[1]
    if isinstance(value, dict):
        value = f"{text_field(value, 'title', '')} {text_field(value, 'text')}"
    return [""] if value is None else [checked_text(value, name).strip()]


def _is_pair(value: list[Any]) -> bool:
    return len(value) == 2 and all(isinstance(each, str) for each in value)


def _labelled(record: dict[str, Any], name: str, texts: list[str]) -> tuple[list[str], list[str]]:
    """Tell apart the texts of a row without negatives, if its labels say which are positive."""
    labels = record.get("labels", record.get("label"))
    labels = labels if isinstance(labels, list) else [labels]
    labels = [
        {"0": 0, "1": 1}.get(each, each) if isinstance(each, str) else each for each in labels
    ]
    if any(each is not None for each in labels):
        if len(labels) != len(texts) or any(label not in (0, 1) for label in labels):
            raise BadRow("labels do not fit", f'give each text of "{name}" the label 0 or 1')
        if 1 not in labels:
            raise BadRow(
                "no text has the label 1",
                "write a query's negatives into the row of its positive, as mine_hard_negatives does "
                "with output_format='n-tuple'",
            )
        pairs = list(zip(labels, texts, strict=True))
        return [text for label, text in pairs if label], [
            text for label, text in pairs if not label
        ]
    if _is_number(record.get("score")) or (record.get("scores") and len(texts) > 1):
        raise BadRow(
            "a score, and no negative",
            "write a query's negatives into the row of its positive, as mine_hard_negatives does with "
            "output_format='n-tuple'; or delete the score, if every such text is a positive",
        )
    return texts, []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
