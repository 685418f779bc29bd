"""The command `expandr plan`: the predicted cost of a run, beside the actual cost of one."""

from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
import yaml
from pydantic import ValidationError
from rich.table import Table

from expandr_cli.config_files import SeedOption, SetOption, load_options
from expandr_cli.terminal import StoreOption, absolute, fail, notify, out, user_errors

if TYPE_CHECKING:
    from expandr_core.planning.cost_model import StepCost, Throughput

app = typer.Typer()


@app.command()
def plan(
    config: Annotated[
        Path | None, typer.Argument(help="YAML file, as for `expandr run`; not needed with --run.")
    ] = None,
    store: StoreOption = "store",
    seed: SeedOption = None,
    changes: SetOption = None,
    run_name: Annotated[
        str, typer.Option("--run", help="Compare with the actual cost of this run, or of 'latest'.")
    ] = "",
    throughputs: Annotated[
        Path | None, typer.Option(help="Read stage costs from this file, as written by --save.")
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Write the stage costs to this file.")] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure now, even if there are earlier runs.")
    ] = False,
    sample: Annotated[int, typer.Option(min=8, help="Number of queries in a calibration.")] = 64,
) -> None:
    """Estimate a run's texts, tokens, hours and disk, stage by stage, before you start it.

    Stage costs come from earlier runs with the same models or, if there are none, from one calibration
    round on a sample of the data. Hours are for one worker that makes everything from scratch.
    """
    with user_errors("The same command continues from the finished stages"):
        from expandr_cli.preflight import check_run
        from expandr_cli.temporary_server import prefect_server, run_flow
        from expandr_core.planning.cost_model import measured
        from flows.plan import plan as plan_flow
        from flows.run_record import loop_run
        from tasks.stage import open_store

        if run_name and config:
            fail("--run takes no CONFIG")
        run = loop_run(open_store(absolute(store)), run_name) if run_name else None
        if run:
            options = run.options
        elif config:
            options = load_options(config, seed, changes or [])
        else:
            fail("name a CONFIG to plan, or the run to compare with: --run RUN")
        throughput = _read(throughputs) if throughputs else None
        check_run(options, absolute(store))
        with prefect_server(notify):
            made = run_flow(
                plan_flow,
                options=options,
                throughput=throughput,
                before=run.started if run else None,
                calibrate=calibrate,
                sample=sample,
                store=absolute(store),
            )
        before = measured(open_store(absolute(store)), run.steps) if run else []
    if save:
        save.write_text(yaml.safe_dump(made.throughput.model_dump(), sort_keys=False))
    out.print(_table(made.steps, before), highlight=False)
    out.print(f"Throughputs: {made.throughput.source}.", highlight=False, soft_wrap=True)


def _read(path: Path) -> "Throughput":
    """Read throughputs from a YAML or JSON file."""
    from expandr_core.planning.cost_model import Throughput

    try:
        return Throughput(**yaml.safe_load(path.read_text()))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, ValidationError) as error:
        fail(f"{path}: {error}; `expandr plan --save FILE` writes such a file")


class Sum(NamedTuple):
    """The total cost of a stage's steps."""

    steps: int
    workload: str
    seconds: float
    bytes: float


def by_stage(steps: Iterable["StepCost"]) -> dict[str, Sum]:
    """Sum the costs of each stage, in the order in which the stages first run."""
    grouped: dict[str, list[StepCost]] = {}
    for step in steps:
        grouped.setdefault(step.stage, []).append(step)
    return {
        stage: Sum(
            len(own),
            _described_workload(own),
            sum(step.seconds for step in own),
            sum(step.bytes for step in own),
        )
        for stage, own in grouped.items()
    }


def _described_workload(steps: list["StepCost"]) -> str:
    """Describe a stage's workload: its texts and tokens, or its first quantity."""
    counted = [step.counts if step.stage == "expand" else step.workload for step in steps]
    names = ("texts", "tokens") if steps[0].stage == "expand" else list(counted[0])[:1]
    return ", ".join(f"{sum(each[name] for each in counted):,.0f} {name}" for name in names)


def _table(planned: list["StepCost"], measured: list["StepCost"]) -> Table:
    """Lay out the predicted cost of each stage, beside the measured cost if there is one."""
    sums, real = by_stage(planned), by_stage(measured)
    table = Table("stage", "steps", "workload")
    for name in ("time", "disk", *(("measured", "disk", "time / measured") if real else ())):
        table.add_column(name, justify="right")
    for stage, own in sums.items():
        row = [stage, f"{own.steps}", own.workload, *_cost(own)]
        if stage in real:
            row += [*_cost(real[stage]), f"{own.seconds / real[stage].seconds:.2f}"]
        table.add_row(*row)
    table.add_section()
    total = Sum(sum(own.steps for own in sums.values()), "", *_total(sums.values()))
    row = ["all", f"{total.steps}", "", *_cost(total)]
    if real:
        both = Sum(0, "", *_total(own for stage, own in real.items() if stage in sums))
        row += [*_cost(both), f"{total.seconds / both.seconds:.2f}"]
    table.add_row(*row)
    return table


def _total(sums: Iterable[Sum]) -> tuple[float, float]:
    own = list(sums)
    return sum(each.seconds for each in own), sum(each.bytes for each in own)


def _cost(own: Sum) -> tuple[str, str]:
    """Format time and disk.

    >>> _cost(Sum(1, "", 93784, 2_500_000))
    ('1 day, 2:03:04', '2.5 MB')
    >>> _cost(Sum(1, "", 7.26, 2_500_000_000))
    ('7.3 s', '2.5 GB')
    """
    seconds = (
        f"{own.seconds:.1f} s" if own.seconds < 60 else f"{timedelta(seconds=round(own.seconds))}"
    )
    unit, name = (1e9, "GB") if own.bytes >= 1e9 else (1e6, "MB")
    return seconds, f"{own.bytes / unit:.1f} {name}"
