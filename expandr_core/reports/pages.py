"""The pages of a report: HTML, Markdown, LaTeX, JSON and CSV of the same numbers."""

import csv
import io
import itertools
import json
from pathlib import Path
from typing import Any

from expandr_core.reports.figures import figures_of
from expandr_core.reports.formats import FILTERS
from expandr_core.reports.graph import mermaid
from expandr_core.reports.palette import DARK, FAMILIES, LIGHT, css
from expandr_core.reports.tex import tex

Report = dict[str, Any]
_COLUMNS = (
    *("dataset", "system", "title", "queries", "clusters", "seeds"),
    *("ndcg_at_10", "low", "high", "map", "recall_at_100", "mrr_at_10"),
    *("difference", "p", "corrected_p", "effect", "wins", "losses"),
)


def pages_of(report: Report) -> dict[str, str]:
    """Write all pages of a report, by file name."""
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    return {
        "report.html": html_of(report),
        "report.md": markdown_of(report),
        "report.tex": tex_of(report),
        "report.json": text,
        "report.csv": csv_of(report),
    }


def html_of(report: Report) -> str:
    """Write the page for people: self-contained, without a script."""
    return filled(
        "report.html.j2",
        report,
        pictures=figures_of(report),
        graph=_placed(report["lineage"]),
        families=FAMILIES,
    )


def markdown_of(report: Report) -> str:
    """Write the page for Prefect."""
    graph = report["lineage"]
    return filled("report.md.j2", report, mermaid="" if "unavailable" in graph else mermaid(graph))


def tex_of(report: Report) -> str:
    """Write the tables for a paper, with significance marks, as a document that compiles alone."""
    return filled("report.tex.j2", report)


def csv_of(report: Report) -> str:
    """Write the table of systems."""
    file = io.StringIO()
    writer = csv.DictWriter(file, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(report["systems"])
    return file.getvalue()


def filled(template: str, *values: Report, **named: Any) -> str:
    """Fill a template of this package; what goes into HTML or LaTeX is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("expandr_core.reports"),
        autoescape=".html" in template,
        finalize=tex if ".tex" in template else None,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {each.__name__: each for each in FILTERS}
    style = Path(__file__).with_name("templates") / "report.css"
    environment.globals |= {  # pyrefly: ignore[bad-assignment]
        "style": style.read_text(encoding="utf-8") if environment.autoescape else "",
        "light": css(LIGHT),
        "dark": css(DARK),
    }
    return environment.get_template(template).render(*values, **named)


BOX, GAP = (156, 40), (14, 34)  # width and height of a node, and between nodes


def _placed(graph: Report) -> Report:
    """Give nodes and edges of a graph their places in a picture."""
    if "unavailable" in graph:
        return graph
    (width, height), (beside, below) = BOX, GAP
    columns = [node["column"] for node in graph["nodes"]]
    columns += [column for bends in graph["bends"] for _, column in bends]
    left = min(columns)

    def place(layer: int, column: float) -> tuple[float, float]:
        return 8 + (column - left) * (width + beside), 8 + layer * (height + below)

    places = {node["id"]: place(node["layer"], node["column"]) for node in graph["nodes"]}
    ways = []
    for (one, other), bends in zip(graph["edges"], graph["bends"], strict=True):
        points = [places[one], *(place(*bend) for bend in bends), places[other]]
        way = ""
        for (x, y), (x_, y_) in itertools.pairwise((x + width / 2, y) for x, y in points):
            begin, bend = y + height, (y_ - y - height) / 2
            way += f"{'L' if way else 'M'}{x:.1f} {begin:.1f}C{x:.1f} {begin + bend:.1f} "
            way += f"{x_:.1f} {y_ - bend:.1f} {x_:.1f} {y_:.1f}"
        ways.append(way)
    return {
        "nodes": [
            node | {"x": places[node["id"]][0], "y": places[node["id"]][1]}
            for node in graph["nodes"]
        ],
        "edges": ways,
        "artifacts": graph["artifacts"],
        "width": (max(columns) - left) * (width + beside) + width + 16,
        "height": max(y for _, y in places.values()) + height + 8,
    }
