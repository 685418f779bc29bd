"""Plan: what a run will cost, before it is started; and beside it what one has cost.

The steps are those of the joint loop itself, in a workspace that makes nothing. What a stage costs is
known from earlier runs in the store with the same models, or from a calibration: the loop in small,
on samples of the data.
"""

from dataclasses import replace
from datetime import datetime

from prefect import flow, get_run_logger
from prefect.logging import disable_run_logger
from pydantic import BaseModel

from expandr_core.errors import DataError
from expandr_core.options.loop import JointLoopOptions
from expandr_core.planning.cost_model import Rates, Step, measured, rates_of
from expandr_core.runtime.runner import module_of
from expandr_core.stages.sample import OPTIONS as SampleOptions
from expandr_core.store.artifacts import Artifact
from flows.joint_loop import run_rounds
from flows.run import Models, Run
from tasks.data import Data, Evaluation, prepare_data
from tasks.models import build_llm, build_retriever, check_adapter, import_models
from tasks.planned import PlannedWorkspace
from tasks.preferences import choose_pairs
from tasks.stage import Workspace

PASSAGES_PER_QUERY = 16  # in a sample
LATEST = 3  # runs that are learned from


class Plan(BaseModel):
    """What a run will cost, and by which rates."""

    rates: Rates
    steps: list[Step]


@flow(name="plan")
def plan(
    options: JointLoopOptions,
    rates: Rates | None = None,
    before: datetime | None = None,
    calibrate: bool = False,
    sample: int = 64,
    store: str = "store",
) -> Plan:
    """Predict the steps of a run of the joint loop.

    The data is prepared (the run finds it), and so are the models if there is a calibration.

    Args:
        options: The options of every stage.
        rates: What stages cost; else it is learned from earlier runs, or measured.
        before: Learn from runs that ended before, only; without one there is no prediction.
        calibrate: Measure, even if there are runs to learn from.
        sample: Queries of the larger sample of a calibration; the smaller one has a quarter.
        store: Folder or s3:// URL that keeps every artifact.

    Raises:
        DataError: if there is nothing to predict by, or too few pairs are predicted.
    """
    work = Workspace(store=store, seed=options.seed, device=options.device)
    imported = import_models(work, options)
    check_adapter(imported, options)
    data = prepare_data(work, options.data, options.world)
    if not rates and not calibrate:
        rates = learned(work, options, before)
        if before and not rates:
            raise DataError(
                "no run with these models ended before that one, to predict it by; give "
                "--throughputs FILE, as the plan's --save wrote it, or --calibrate"
            )
    if not rates:
        llm = imported.get("llm") or build_llm(work, data, options)
        retriever = imported.get("retriever") or build_retriever(work, data, options)
        rates = calibrated(Run(work, data, options), Models(0, llm, retriever), sample)
    get_run_logger().info("planned by %s", rates.source)
    planned = PlannedWorkspace(store=store, seed=options.seed, rates=rates)
    with disable_run_logger():  # of rounds that do not take place
        llm = imported.get("llm") or build_llm(planned, data, options)
        retriever = imported.get("retriever") or build_retriever(planned, data, options)
        run_rounds(Run(planned, data, options), Models(0, llm, retriever))
    return Plan(rates=rates, steps=planned.steps)


def learned(work: Workspace, options: JointLoopOptions, before: datetime | None) -> Rates | None:
    """Learn from the latest runs with the same models; None if there are none."""
    store, names, steps = work.open(), list[str](), list[Step]()
    models = options.model_dump(mode="json", include={"llm", "retriever", "device"})
    for record in reversed(store.records()):
        if "kind" in record:  # of a suite
            continue
        ended = datetime.fromisoformat(record["finished"])
        if models.items() <= record["options"].items() and (before is None or ended < before):
            names.append(record["name"])
            own = [(title, Artifact(**artifact)) for title, artifact in record["steps"]]
            steps += measured(store, own)
        if len(names) == LATEST:
            break
    return rates_of(steps, f"as in {' and '.join(names)}") if names else None


def calibrated(run: Run, models: Models, sample: int) -> Rates:
    """Run one round on samples of the data: of a quarter, and of all of the queries asked for.

    One on an eighth comes first: it only tells how much longer takes what is done first in a process.
    """
    store = run.work.open()
    steps = measured(store, run.work.made)  # of the models that were built
    loading: list[Step] = []
    for part in (8, 4, 1):
        queries = max(2, sample // part)
        get_run_logger().info("calibration with %d queries", queries)
        work = Workspace(store=run.work.store, seed=run.work.seed, device=run.work.device)
        small = Run(work, sampled(work, run.data, queries), undemanding(run.options))
        run_rounds(small, models)
        if part == 8:  # a process of its own loads anew each time
            made = measured(store, work.made)
            loading = [step for step in made if module_of(step.stage).ISOLATION != "always"]
        else:
            steps += measured(store, as_asked(work, run.options).items())
    return rates_of(steps, f"a calibration with {sample} queries", loading)


def as_asked(work: Workspace, options: JointLoopOptions) -> dict[str, Artifact]:
    """Return what a sample's round has made, but with pairs as the run accepts them."""
    made = {title: artifact for title, artifact in work.made if artifact.stage != "sample"}
    rewards = made["reward the candidates, round 1"]
    pairs = choose_pairs(work, rewards, options.preferences, ", as asked", more_to_come=True)
    return made | {"choose pairs, round 1": pairs}


def undemanding(options: JointLoopOptions) -> JointLoopOptions:
    """Change options so that one round on a few queries runs to its end."""
    accept_all = {
        "acceptance": "threshold",
        "acceptance_value": -2,
        "minimum_margin": 0,
        "lazy": False,
        "dev_share": 0,
        "minimum_pairs": 1,
        "length_share": 1,
    }
    return options.model_copy(
        update={
            "preferences": options.preferences.model_copy(update=accept_all),
            "loop": options.loop.model_copy(update={"rounds": 1}),
        }
    )


def sampled(work: Workspace, data: Data, queries: int) -> Data:
    """Cut the data down to some queries, and some passages for each of them."""

    def some(table: Artifact, size: int) -> Artifact:
        title = f"sample {size} of {table.path}"
        made = work.make(title, "sample", SampleOptions(size=size), {"table": table})
        return made.at(table.path)

    def passages(corpus: Artifact) -> Artifact:
        return some(corpus, queries * PASSAGES_PER_QUERY)

    return replace(
        data,
        corpus=passages(data.corpus),
        collection=passages(data.collection) if data.collection else None,
        preference=some(data.preference, queries),
        retriever=some(data.retriever, queries),
        evaluations={
            split: Evaluation(some(each.queries, queries), each.qrels, passages(each.corpus))
            for split, each in data.evaluations.items()
        },
    )
