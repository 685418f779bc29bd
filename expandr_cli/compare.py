"""The command `expandr compare`: what two runs reached, and why that differs."""

import json
from typing import Annotated, Any

import typer
from rich.console import Console

from expandr_cli.explain import JsonOption
from expandr_cli.results import STYLES, plain_table
from expandr_cli.terminal import StoreOption, absolute, notify, out, user_errors
from expandr_core.evaluation.render import EFFECTS, format_p

app = typer.Typer()


@app.command()
def compare(
    runs: Annotated[
        list[str], typer.Argument(help="Two or more runs, or the beginnings of their names.")
    ],
    others: Annotated[
        list[str] | None,
        typer.Option("--in", help="Look in this other store too; repeatable."),
    ] = None,
    publish: Annotated[
        bool, typer.Option(help="Leave the table as an artifact in Prefect, too.")
    ] = False,
    as_json: JsonOption = False,
    store: StoreOption = "store",
) -> None:
    """Compare runs number by number, and say what differs upstream of each that changed.

    The first run is compared with each of the others. Queries are paired where they are the same.
    """
    with user_errors():
        from expandr_core.lineage.compare_runs import compare_runs
        from flows.compare_runs import find_all

        stores = [absolute(each) for each in (store, *(others or []))]
        compared = find_all(runs, stores)
        if publish:
            from expandr_cli.temporary_server import prefect_server, run_flow
            from flows.compare_runs import compare_runs as flow

            with prefect_server(notify):
                found = run_flow(flow, runs=tuple(runs), stores=tuple(stores))
        else:
            found = compare_runs(compared)
    if as_json:
        typer.echo(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        _print(out, found)


def _print(console: Console, found: dict[str, Any]) -> None:
    """Print a table of numbers, then what differs upstream of those that changed."""
    first, *others = found["runs"]
    names = [name for run in others for name in (run, "difference", "p (Holm)")]
    table = plain_table(f"nDCG@10, against {first}", "dataset", "system", first, *names)
    table.columns[1].justify = "left"
    refused: dict[str, None] = {}
    for row in found["rows"]:
        cells, effect = [_score(row["values"][first])], None
        tests = {test["run"]: test for test in row["tests"]}
        for run in others:
            test = tests.get(run, {})
            cells.append(_score(row["values"][run]))
            if "refused" in test:
                refused[f"{run}: {test['refused']}"] = None
            effect = test.get("effect")
            word = EFFECTS[effect] if test.get("significant") else ""
            cells += [f"{test['difference']:+.4f} {word}".strip(), format_p(test["corrected_p"])] if (
                effect
            ) else ["", "refused" if test else ""]  # fmt: skip
        table.add_row(row["dataset"], row["title"], *cells, style=STYLES.get(effect or ""))
    console.print(table)
    refused |= dict.fromkeys(f"{run}: {reason}" for run, reason in found["apart"].items())
    for reason in refused:
        console.print(reason, highlight=False, soft_wrap=True)
    _print_upstream(console, found)


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _print_upstream(console: Console, found: dict[str, Any]) -> None:
    """Print what differs upstream, once for all results of which the same is true."""
    from expandr_core.lineage.upstream import said_of

    for run in found["runs"][1:]:
        by_cause: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for row in found["rows"]:
            for each in row["upstream"]:
                if each["run"] == run:
                    by_cause.setdefault(tuple(said_of(each)), []).append(row | {"cause": each})
        console.print(f"\nupstream, {run}", style="bold")
        whole = found["differ"][run]
        for name, (one, other) in (whole["options"] | whole["code"]).items():
            said = f"  between the runs: {name}: {one} → {other}"
            console.print(said, highlight=False, soft_wrap=True)
        if not by_cause and run not in found["apart"]:
            console.print("  every result was made from the same content", highlight=False)
        for said, rows in by_cause.items():
            results = "1 result was" if len(rows) == 1 else f"{len(rows)} results were"
            lines = [f"{results} made otherwise: {_named(rows)}", *(f"  {line}" for line in said)]
            lines += [
                f"  first: {path}: {'; '.join(first['what'])}"
                for first in rows[-1]["cause"]["first"]
                for path in first["paths"]
            ]
            for line in lines:
                console.print(f"  {line}", highlight=False, soft_wrap=True)


def _named(rows: list[dict[str, Any]]) -> str:
    """Name systems, and on which datasets.

    >>> _named([{"title": "BM25", "dataset": "nq"}, {"title": "BM25", "dataset": "fever"}])
    'BM25 (nq, fever)'
    """
    datasets: dict[str, list[str]] = {}
    for row in rows:
        datasets.setdefault(row["title"], []).append(row["dataset"])
    return "; ".join(f"{title} ({', '.join(own)})" for title, own in datasets.items())
