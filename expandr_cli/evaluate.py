"""The command `expandr evaluate`: models on many datasets."""

from pathlib import Path
from typing import Annotated, Any

import typer

from expandr_cli.config_files import SeedOption, SetOption, load_options, said_of
from expandr_cli.terminal import AGAIN, ANEW, StoreOption, absolute, fail, notify, out, user_errors

app = typer.Typer()


@app.command()
def evaluate(
    config: Annotated[Path, typer.Argument(help="YAML file, as for `expandr run`.")],
    datasets: Annotated[
        str,
        typer.Option(
            help="Separated by commas: BEIR names such as scifact, NanoBEIR names such as nano-scifact, "
            "all with beir or nano-beir; folders or s3:// URLs in BEIR layout; NAME=LOCATION."
        ),
    ],
    runs: Annotated[
        list[str] | None,
        typer.Option(
            "--run",
            help="Use the models of this alias or run, or of 'latest'; repeatable. By default those "
            "that CONFIG names, and the champion if it names none.",
        ),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            help="llm=KEY or retriever=KEY to replace CONFIG's; training=KEY to check for leakage.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=0, help="How many seeds of sampled expansions.")] = 3,
    gate_on: Annotated[
        str, typer.Option(help="Learn a gate on the qrels/dev.tsv of this folder in BEIR layout.")
    ] = "",
    plan_only: Annotated[
        bool,
        typer.Option("--plan", help="Only estimate texts, tokens, hours and disk, from scratch."),
    ] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="With --plan: measure now, even if there are runs.")
    ] = False,
    store: StoreOption = "store",
    seed: SeedOption = None,
    changes: SetOption = None,
) -> None:
    """Compare models on many datasets: BM25, queries alone, and queries with expansions.

    If you add a dataset or a run, only the new measurements are made.
    """
    if calibrate and not plan_only:
        fail("--calibrate goes with --plan")
    options = load_options(config, seed, changes or [])
    with user_errors(ANEW if plan_only else AGAIN):
        from expandr_cli.preflight import check_suite
        from flows.model_pairs import MeasuredModels

        models = MeasuredModels.of(runs or [], inputs or [], gate_on)
        wanted, store = tuple(datasets.split(",")), absolute(store)
        check_suite(wanted, options, models, store)
        asked = {"datasets": wanted, "options": options, "models": models, "seeds": seeds}
        if plan_only:
            _plan(asked | {"store": store, "calibrate": calibrate})
        else:
            _measure(asked | {"store": store}, [str(config), *said_of(seed, changes)])


def _plan(asked: dict[str, Any]) -> None:
    from expandr_cli.plan import print_plan
    from expandr_cli.temporary_server import prefect_server, run_flow
    from flows.plan_suite import plan_suite
    from tasks.stage import open_store

    with prefect_server(notify):
        made = run_flow(plan_suite, **asked)
    print_plan(made, open_store(asked["store"]))


def _measure(asked: dict[str, Any], said: list[str]) -> None:
    from expandr_cli.results import print_suite
    from expandr_cli.temporary_server import prefect_server, run_flow
    from flows.evaluate_suite import evaluate_suite
    from flows.run_record import said_of_it

    with prefect_server(notify), said_of_it(said):
        summary = run_flow(evaluate_suite, **asked)
    print_suite(out, summary.store, summary.report, summary.name)
