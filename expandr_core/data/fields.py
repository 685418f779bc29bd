"""The fields of a JSON row, and what is wrong with a bad row."""

import json
from typing import Any

_OTHER_NAMES = {  # in other layouts, for remedies
    "_id": ("id", "docid", "doc_id", "pid", "passage_id", "corpus_id", "qid", "query_id"),
    "text": ("contents", "content", "body", "passage", "document", "query", "question"),
}


class BadRow(Exception):
    """An unusable row: a reason to count it by, the remedy, and details of the case."""

    def __init__(self, reason: str, remedy: str, case: str = ""):
        super().__init__(f"{reason}{case and f' ({case})'}; {remedy}")
        self.reason = reason


def parse_object(line: str) -> dict[str, Any]:
    """Parse a line of JSON lines.

    >>> parse_object('{"_id": "1", "text": "wing"}')
    {'_id': '1', 'text': 'wing'}
    """
    remedy = "write one complete JSON object a line"
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        if not line.strip().endswith("}"):
            remedy += ", for example with jq -c . (of an array: jq -c '.[]')"
        raise BadRow("not valid JSON", remedy, f"{error.msg}, column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise BadRow("not valid JSON", remedy, str(error)) from None
    if not isinstance(record, dict):
        if isinstance(record, list):
            remedy += ", of an array for example with jq -c '.[]'"
        raise BadRow("not a JSON object", remedy, f"it starts with {line.strip()[:20]!r}")
    return record


def text_field(record: dict[str, Any], field: str, default: str | None = None) -> str:
    """Return a field that must be a string; with a default it may be missing or null.

    >>> text_field({"title": "Wings"}, "title", ""), text_field({"title": None}, "title", "")
    ('Wings', '')
    """
    value = record.get(field)
    if value is None and default is not None:
        return default
    if field not in record:
        others = [name for name in _OTHER_NAMES.get(field, ()) if name in record]
        raise BadRow(
            f"no {field}", f'rename "{others[0]}" to "{field}"' if others else f'add "{field}"'
        )
    return checked_text(value, field)


def checked_text(value: Any, field: str) -> str:
    """Return a value that must be a string."""
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise BadRow(f"{field} holds half a character", "write \\u escapes in whole pairs")
        return value
    if value is None:
        raise BadRow(f"{field} is null", "write a string")
    raise BadRow(f"{field} is not a string", "write it in quotes", f"{json.dumps(value)[:40]}")


def filled_field(record: dict[str, Any], field: str) -> str:
    """Return a field that must be a string and not blank."""
    value = text_field(record, field)
    if not value.strip():
        raise BadRow(f"{field} is empty", "fill it in, or delete the row")
    return value
