"""Thirty rows in each of the layouts of the paper's releases."""

import json
from pathlib import Path
from typing import Any

TURN = "Please write a passage to answer the question.\nQuestion: {}\nPassage:"


def pair(number: int, query: str = "") -> dict[str, Any]:
    """Return a row of the release's pairs; every third query occurs twice."""
    query = query or f"why is thing {number - number % 3 % 2} grey?"
    return {
        "conversations": [{"from": "human", "value": TURN.format(query)}],
        "chosen": {"from": "gpt", "value": f"Thing {number} is of grey text."},
        "rejected": {"from": "gpt", "value": f"Nobody knows number {number}"},
    }


PAIRS = [pair(number) for number in range(30)]


def triple(number: int) -> dict[str, Any]:
    """Return a row of the release's triples: two rows a query, with passages in different words."""
    thing = number // 2
    lead = "Here is a passage to answer the question:\n\n" if number % 5 == 0 else ""
    return {
        "query": f"why is thing {thing} grey?",
        "pseudo_doc": f"{lead}Thing {thing} is of grey text, says {number}.",
        "pos": [f"thing {thing} is of grey text", f"text {thing} is grey"][: 1 + number % 2],
        "neg": [f"thing {thing + 100} is a test"],
    }


TRIPLES = [triple(number) for number in range(30)]


def write_array(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1))
    return path


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
