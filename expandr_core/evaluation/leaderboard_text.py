"""The leaderboard as Markdown."""

from typing import Any

import pyarrow as pa

from expandr_core.data.catalog import SHARED_CORPUS
from expandr_core.evaluation.markdown import format_p, format_score, markdown_table, warning_lines
from expandr_core.evaluation.metrics import TITLES
from expandr_core.evaluation.significance import TEST_NAMES, too_few_to_tell

SHOWN = 5  # wins and losses a step
_ORDER = ("ndcg_at_10", "recall_at_100", "mrr_at_10", "map")


def render(report: dict[str, Any], changes: pa.Table) -> str:
    """Render leaderboard.json, and the largest changes of single queries.

    Args:
        report: as the stage leaderboard writes it.
        changes: every query's difference in every step.
    """
    titles = {system["name"]: system["title"] for system in report["systems"]}
    lines = ["# Leaderboard", "", *warning_lines(report)]
    lines += [*_means(report, titles), "", *_results(report, titles)]
    if report["steps"]:
        lines += ["", *_steps(report, titles), "", *_changes(report, titles, changes)]
    if report["leakage"]:
        lines += ["", *_leakage(report, titles)]
    return "\n".join([*lines, ""])


def _means(report: dict[str, Any], titles: dict[str, str]) -> list[str]:
    """One row a system, one column a mean; then what is missing."""
    columns = list(dict.fromkeys(mean["title"] for mean in report["means"]))
    cells = {
        (mean["system"], mean["title"]): format_score(
            mean[report["metric"]], mean[f"{report['metric']}_deviation"]
        )
        for mean in report["means"]
    }
    rows = [
        [title, *(cells.get((name, column), "") for column in columns)]
        for name, title in titles.items()
    ]
    lines = ["## Means over datasets", "", f"{TITLES[report['metric']]}, datasets without weights."]
    lines += ["", *markdown_table(["system", *columns], rows, left=1)]
    missing = {m["benchmark"]: m["missing"] for m in report["means"] if m["scope"] == "all"}
    for benchmark, names in missing.items():
        if names:
            lines += ["", f"**Missing** of {benchmark}: {', '.join(names)}."]
    for name, other in SHARED_CORPUS.items():
        if any(dataset["name"].removeprefix("nano-") == name for dataset in report["datasets"]):
            lines += [
                "",
                f"{name} counts as out-of-domain: its queries are not in the paper's training mix, "
                f"but it searches the corpus of {other}, whose passages are.",
            ]
    return lines


def _results(report: dict[str, Any], titles: dict[str, str]) -> list[str]:
    rows = []
    for row in report["results"]:
        scores = [format_score(row[name], row[f"{name}_deviation"]) for name in _ORDER]
        tested = ["", "", ""]
        if row["p"] is not None:
            tested = [
                f"{row['difference']:+.3f}",
                _corrected(row),
                f"{row['wins']} / {row['losses']}",
            ]
        names = [row["dataset"], titles[row["system"]], row["domain"], str(row["queries"])]
        rows.append([*names, *scores, *tested])
    header = ["dataset", "system", "domain", "queries", *(TITLES[name] for name in _ORDER)]
    header += ["versus query only", "p (Holm)", "wins / losses"]
    samples = {
        titles[system["name"]]: system["samples"]
        for system in report["systems"]
        if system["samples"] > 1
    }
    several = "".join(
        f" {title}: mean ± standard deviation over {n} seeds." for title, n in samples.items()
    )
    lines = ["## Datasets", ""]
    if several:
        lines += [several.strip(), ""]
    return [*lines, *markdown_table(header, rows, left=3)]


def _corrected(step: dict[str, Any]) -> str:
    return format_p(step["corrected_p"]) + (" *" if step["significant"] else "")


def _steps(report: dict[str, Any], titles: dict[str, str]) -> list[str]:
    rows = [
        [
            step["question"],
            f"{titles[step['before']]} → {titles[step['after']]}",
            step["dataset"],
            f"{step['difference']:+.3f}",
            format_p(step["p"]),
            _corrected(step),
            f"{step['wins']} / {step['losses']}",
        ]
        for step in report["steps"]
    ]
    header = ["question", "step", "dataset", "difference", "p", "p (Holm)", "wins / losses"]
    return [
        "## Tests",
        "",
        f"Difference in {TITLES[report['metric']]}, {TEST_NAMES[report['test']]}, two-sided, Holm's "
        f"correction over these {len(rows)} tests; * p < {report['significance_level']:g}. Of several "
        "seeds, each query has the mean; queries of forums are weighted so that forums count alike."
        + too_few_to_tell(
            (step["clusters"] for step in report["steps"]), report["significance_level"]
        ),
        "",
        *markdown_table(header, rows, left=3),
    ]


def _changes(report: dict[str, Any], titles: dict[str, str], changes: pa.Table) -> list[str]:
    """Show the queries that won and lost most in each step, over all datasets."""
    steps = dict.fromkeys((step["before"], step["after"]) for step in report["steps"])
    rows = changes.to_pylist()
    lines = ["## Wins and losses", "", "differences.parquet has every query."]
    for before, after in steps:
        own = [row for row in rows if (row["before"], row["after"]) == (before, after)]
        own.sort(key=lambda row: (-row["difference"], row["dataset"], row["query_id"]))
        wins = [row for row in own[:SHOWN] if row["difference"] > 0]
        losses = [row for row in own[-SHOWN:][::-1] if row["difference"] < 0]
        table = [
            [
                row["dataset"],
                row["query_id"],
                _shortened(row["query"]),
                f"{row['before_score']:.3f}",
                f"{row['after_score']:.3f}",
                f"{row['difference']:+.3f}",
            ]
            for row in wins + losses
        ]
        header = ["dataset", "query", "text", "before", "after", "difference"]
        lines += ["", f"**{titles[before]} → {titles[after]}**", ""]
        lines += markdown_table(header, table, left=3) if table else ["No query changed."]
    return lines


def _shortened(text: str, length: int = 80) -> str:
    """Cut a text at a length.

    >>> _shortened("a red bird sings", 9)
    'a red bi…'
    """
    return text if len(text) <= length else text[: length - 1] + "…"


def _leakage(report: dict[str, Any], titles: dict[str, str]) -> list[str]:
    rows = []
    for audit in report["leakage"]:
        expansions = audit["expansions"]
        rows.append(
            [
                audit["place"],
                titles[audit["system"]],
                *(_share(audit[mark]) for mark in ("query_in_training", "passage_in_training")),
                f"{expansions['copying'] / max(expansions['number'], 1):.1%}",
                _gain(audit["gain"]),
                *(
                    _gain(audit[mark]["gain_without"]) if audit[mark] else "not known"
                    for mark in ("query_in_training", "passage_in_training", "copying", "any")
                ),
            ]
        )
    header = ["dataset", "system", "queries in training", "passages in training"]
    header += ["copying expansions", "gain", "without these queries", "without these passages"]
    header += ["without copies", "without any"]
    return [
        "## Leakage",
        "",
        "Share of the queries whose text is a training query, or of which a relevant passage is a "
        f"training positive; share of expansions that copy ({report['leakage'][0]['rule']}). The gain "
        f"in {TITLES[report['metric']]} over the query alone, and without the queries so marked; "
        "'not known' where the models' training data was not named.",
        "",
        *markdown_table(header, rows, left=2),
    ]


def _share(part: dict[str, Any] | None) -> str:
    return f"{part['share']:.1%}" if part else "not known"


def _gain(value: float | None) -> str:
    return "none left" if value is None else f"{value:+.3f}"
