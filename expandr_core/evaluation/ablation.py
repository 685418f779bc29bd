"""The table of an ablation: what every line reaches, how it differs from the base, and what it costs."""

import json
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from expandr_core.evaluation.comparison import tests_in
from expandr_core.evaluation.metrics import MEASURES
from expandr_core.evaluation.render import EFFECTS, fill, tests_of
from expandr_core.options.base import Options

SCHEMA = 1  # of ablation.json


class TableRow(Options):
    """A line of an ablation.

    `plain` names the system of its LLM with the base retriever: the base's, if the line leaves it as it
    is. `error` says why it has no result. The rest is what it has cost beyond the lines above it:
    artifacts made, of those used; seconds of their stages; and tokens written.
    """

    name: str
    title: str
    changes: dict[str, Any] = Field(default={})
    plain: str = ""
    error: str = ""
    made: int = Field(default=0, ge=0)
    artifacts: int = Field(default=0, ge=0)
    seconds: float = Field(default=0, ge=0)
    tokens: int = Field(default=0, ge=0)


def ablation_of(comparison: dict[str, Any], rows: Sequence[TableRow], query: str) -> dict[str, Any]:
    """Lay an ablation out, as ablation.json has it.

    Args:
        comparison: comparison.json of one dataset, with a system of the name of every row without
            error, and of every row's `plain`.
        rows: in their order, the base first.
        query: name of the system without expansions, which is the first row of the result.
    """
    results = {row["system"]: row for row in comparison["results"]}
    [dataset] = comparison["datasets"]
    first = TableRow(name=query, title="query only")
    laid_out = []
    for row in (first, *rows):
        own = not row.error and (row is first or row.plain.startswith(f"{row.name}_"))
        laid_out.append(
            {
                "name": row.name,
                "title": row.title,
                "changes": written(row.changes),
                "joint": None if row.error else results[row.name],
                "plain": results[row.plain] if own and row.plain else None,
                "error": row.error,
                "made": row.made,
                "artifacts": row.artifacts,
                "seconds": row.seconds,
                "tokens": row.tokens,
            }
        )
    return {
        "schema": SCHEMA,
        **{name: comparison[name] for name in ("metric", "test", "significance_level", "warnings")},
        "dataset": dataset["name"],
        "seeds": len(dataset["subsets"]),
        "subsets_are": comparison["subsets_are"],
        "tests": tests_in(comparison),
        "test_title": tests_of(comparison),
        "sentences": comparison["verdict"]["sentences"],
        "rows": laid_out,
    }


def written(changes: dict[str, Any]) -> str:
    """Write changes as they are said on the command line.

    >>> written({"dpo.beta": 0.2, "align.method": "sft", "dpo.loss": ["ipo"]})
    'dpo.beta=0.2, align.method=sft, dpo.loss=["ipo"]'
    """
    return ", ".join(
        f"{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in changes.items()
    )


def render_ablation(ablation: dict[str, Any]) -> str:
    """Render ablation.json as Markdown."""
    names = {"measures": MEASURES, "effects": EFFECTS, "test_name": ablation["test_title"]}
    return fill("ablation.md.j2", ablation, **names)


def flat(ablation: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of ablation.csv: scores and differences of both systems side by side."""
    metric, rows = ablation["metric"], []
    fields = (metric, f"{metric}_deviation", "difference", "p", "corrected_p", "effect")
    for row in ablation["rows"]:
        record = {name: row[name] for name in ("name", "title", "changes", "error")}
        for system in ("joint", "plain"):
            own = row[system] or {}
            name = "base_retriever" if system == "plain" else system
            record |= {f"{name}_{each}": own.get(each) for each in fields}
        rows.append(
            record | {name: row[name] for name in ("made", "artifacts", "seconds", "tokens")}
        )
    return rows
