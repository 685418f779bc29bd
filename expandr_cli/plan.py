"""The command `expandr plan`: the predicted cost of a run, beside the actual cost of one."""

import os
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
import yaml
from pydantic import ValidationError
from rich.table import Table

from expandr_cli.config_files import SeedOption, SetOption, load_options
from expandr_cli.terminal import ANEW, StoreOption, absolute, fail, notify, out, user_errors

if TYPE_CHECKING:
    from expandr_core.options.loop import JointLoopOptions
    from expandr_core.planning.cost_model import StepCost, Throughput
    from expandr_core.store.run_records import Step
    from expandr_core.store.store import Store
    from flows.evaluate_suite import SuiteSummary
    from flows.plan import Plan

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

    Of measurements on datasets, `expandr evaluate ... --plan` does so; --run takes both kinds of runs.

    Stage costs come from earlier runs with the same models or, if they lack any, from one calibration
    round on a sample of the data. Hours are for one worker that makes everything from scratch.
    """
    with user_errors(ANEW):
        from flows.run_record import loop_run
        from tasks.stage import open_store

        if run_name and config:
            fail("--run takes no CONFIG")
        if save and (save.is_dir() or not os.access(save.parent, os.W_OK)):
            fail(f"--save {save}: no file can be written there; name another")
        opened = open_store(absolute(store))
        suite = _suite(opened, run_name) if run_name else None
        run = loop_run(opened, run_name) if run_name and not suite else None
        how = {
            "throughput": _read(throughputs) if throughputs else None,
            "calibrate": calibrate,
            "sample": sample,
            "store": absolute(store),
        }
        if suite:
            made = _plan_again(suite, how)
        elif run:
            made = _plan_loop(run.options, how | {"before": run.started})
        elif config:
            made = _plan_loop(load_options(config, seed, changes or []), how)
        else:
            fail("name a CONFIG to plan, or the run to compare with: --run RUN")
    over = suite or run
    print_plan(made, opened, over.steps if over else [])
    if save:
        if len(made.throughputs) > 1:
            fail(
                f"--save {save}: these models differ in what their stages cost; plan one pair at a time"
            )
        [throughput] = made.throughputs
        save.write_text(yaml.safe_dump(throughput.model_dump(), sort_keys=False))


def print_plan(made: "Plan", store: "Store", steps: Sequence["Step"] = ()) -> None:
    """Print a plan, beside what the steps of a run have cost."""
    from expandr_core.planning.cost_model import measured

    out.print(_table(made.steps, measured(store, steps)), highlight=False)
    sources = "; ".join(dict.fromkeys(each.source for each in made.throughputs))
    out.print(f"Throughputs: {sources}.", highlight=False, soft_wrap=True)
    if lacking := _lacking(made):
        out.print(
            f"Warning: these throughputs do not tell what {', '.join(lacking)} cost, so the plan counts "
            "them as free; `--calibrate` measures them, if `--sample` is large enough.",
            highlight=False,
            soft_wrap=True,
        )


def _lacking(made: "Plan") -> list[str]:
    """Name the quantities that no throughput of a plan knows, each with its stage."""
    found = list[str]()
    for step in made.steps:
        stages = (each.stages.get(step.stage) for each in made.throughputs)
        known = {name for stage in stages if stage for name in stage.per_second}
        amounts = step.workload.items()
        found += [f"the {name} of {step.stage}" for name, n in amounts if n and name not in known]
    return list(dict.fromkeys(found))


def _plan_loop(options: "JointLoopOptions", how: dict[str, Any]) -> "Plan":
    from expandr_cli.preflight import check_run
    from expandr_cli.temporary_server import prefect_server, run_flow
    from flows.plan import plan as plan_flow

    check_run(options, how["store"])
    with prefect_server(notify):
        return run_flow(plan_flow, options=options, **how)


def _plan_again(suite: "SuiteSummary", how: dict[str, Any]) -> "Plan":
    """Plan a suite that is over, as if it and what followed had not been."""
    from expandr_cli.preflight import check_suite
    from expandr_cli.temporary_server import prefect_server, run_flow
    from flows.plan_suite import plan_suite

    datasets = tuple(suite.datasets)
    check_suite(datasets, suite.options, suite.asked, how["store"])
    asked = {"options": suite.options, "models": suite.asked, "seeds": suite.seeds}
    with prefect_server(notify):
        return run_flow(plan_suite, datasets=datasets, before=suite.started, **asked, **how)


def _suite(store: "Store", name: str) -> "SuiteSummary | None":
    """Find the run of a suite; None if the name is not one of those."""
    from flows.evaluate_suite import SuiteSummary
    from flows.run_record import find_other_run, find_run

    found = None if find_run(store, name) else find_other_run(store, name)
    if not found or found["kind"] != "evaluate-suite":
        return None
    try:
        return SuiteSummary(**found)
    except ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"]))
        fail(
            f"run {found['name']} was recorded by a version that noted less or other options ({field}); "
            "run it again: artifacts that did not change are found"
        )


def _read(path: Path) -> "Throughput":
    """Read throughputs from a YAML or JSON file."""
    from expandr_core.planning.cost_model import Throughput

    try:
        found = Throughput(**yaml.safe_load(path.read_text()))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, ValidationError) as error:
        fail(f"{path}: {error}; `expandr plan --save FILE` writes such a file")
    return found.model_copy(update={"source": f"{found.source}, in {path}"})


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
