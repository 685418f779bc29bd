"""The command `expandr ablate`, and its table in the terminal."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from expandr_cli.config_files import SeedOption, SetOption, load_options, said_of
from expandr_cli.results import STYLES, plain_table, store_option
from expandr_cli.terminal import AGAIN, StoreOption, absolute, notify, out, user_errors
from expandr_core.evaluation.metrics import MEASURES
from expandr_core.evaluation.render import format_p
from expandr_core.evaluation.significance import TEST_NAMES
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store

app = typer.Typer()


@app.command()
def ablate(
    config: Annotated[Path, typer.Argument(help="YAML file, as for `expandr run`: the base.")],
    ablations: Annotated[
        Path, typer.Argument(help="YAML file of changes, such as configs/ablations.yaml.")
    ],
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds; each trains anew.")] = 3,
    store: StoreOption = "store",
    seed: SeedOption = None,
    changes: SetOption = None,
) -> None:
    """Change one thing after another, and compare all in one table, with the cost of each.

    Only what a change affects is made; all else is found in the store.
    """
    with user_errors(AGAIN):
        from flows.ablation_lines import read_ablations

        listed = read_ablations(ablations)
    options = load_options(config, seed, changes or [], (str(ablations), listed.base))
    with user_errors(AGAIN):
        from expandr_cli.preflight import check_ablations
        from expandr_cli.temporary_server import prefect_server, run_flow
        from flows.ablate import ablate as ablate_flow
        from flows.run_record import said_of_it
        from tasks.stage import open_store

        said = [str(config), str(ablations), *said_of(seed, changes)]
        check_ablations(options, listed.lines, absolute(store))
        with prefect_server(notify), said_of_it(said):
            summary = run_flow(
                ablate_flow,
                lines=listed.lines,
                options=options,
                seeds=seeds,
                store=absolute(store),
            )
        print_ablation(out, open_store(summary.store), summary.table)


def print_ablation(out: Console, store: Store, table: Artifact) -> None:
    """Print what an ablation brought, and where the rest is."""
    folder = store.local(table)
    ablation = json.loads((folder / "ablation.json").read_text(encoding="utf-8"))
    metric, several = MEASURES[ablation["metric"]].title, ablation["seeds"] > 1
    shown = plain_table(
        f"{metric} on {ablation['dataset']}" + (f", {ablation['seeds']} seeds" if several else ""),
        *("line", "joint", "vs. base", "p", "base retr.", "vs. base", "cost"),
    )
    for column in shown.columns:
        if column.header == "vs. base":
            column.justify = "left"  # so that the numbers stand below each other
    for row in ablation["rows"]:
        cells = ["none", "", "", "", ""]
        if not row["error"]:
            cells = [*_reached(row["joint"], ablation), *_reached(row["plain"], ablation)[:2]]
        cost = str(timedelta(seconds=round(row["seconds"])))
        if not row["artifacts"]:  # the query alone, which is measured for the base
            cells, cost = cells[:3], ""
        effect = (row["joint"] or {}).get("effect")
        shown.add_row(row["title"], *cells, cost, style=STYLES.get(effect or ""))
    out.print()
    out.print(shown)
    out.print()
    test = ablation.get(
        "test_title", TEST_NAMES[ablation["test"]]
    )  # in tables from before, the latter
    for sentence in ablation["sentences"]:
        out.print(sentence, highlight=False)
    out.print(
        f"p: {test}, Holm's correction over {ablation['tests']} tests; * p < "
        f"{ablation['significance_level']:g}. base retr.: the same texts, with the retriever of the "
        "start; =: the line leaves these texts as they are. vs. base: and the base vs. the query only. "
        "cost: time of the stages that a line needs beyond those above it.",
        highlight=False,
        style="dim",
    )
    for row in ablation["rows"]:
        if row["error"]:
            out.print(f"{row['title']}: {row['error']}", style="yellow", highlight=False)
    for warning in ablation["warnings"]:
        out.print(f"Warning: {warning}.", style="yellow", highlight=False)
    out.print(f"\nMarkdown, CSV and JSON: {folder}", highlight=False, soft_wrap=True)
    option = store_option(store)
    what = f"How each number came to be: expandr show {table.key}{option}"
    out.print(what, highlight=False, soft_wrap=True)


def _reached(result: dict[str, Any] | None, ablation: dict[str, Any]) -> list[str]:
    """Say what a system reaches, how that differs from the base, and by which p."""
    if not result:
        return ["=", "", ""]
    cells = [f"{result[ablation['metric']]:.3f}"]
    if result["p"] is None:
        return [*cells, "", ""]
    star = " *" if result["significant"] else ""
    return [*cells, f"{result['difference']:+.3f}{star}", format_p(result["corrected_p"])]
