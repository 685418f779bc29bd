"""Measure models on many datasets: BEIR, NanoBEIR, or your own.

dataset --> corpus --encode------------------------> vectors -------+
        \\-> judged queries --> alone -------------------------------+
                           --> expanded greedily, and by k seeds ---+--> evaluate --+
                           --> BM25 --------------------------------+               |
training data --> audit of leakage -------------------------------------------------+--> compare
"""

from datetime import UTC, datetime
from typing import Annotated

from prefect import flow
from prefect.runtime import flow_run
from pydantic import BaseModel, Field

from expandr_core.data.catalog import find_datasets
from expandr_core.options.loop import JointLoopOptions
from expandr_core.store.artifacts import Artifact
from flows.model_pairs import MeasuredModels, ModelPair, find_pairs
from flows.presets import Preset, place, resolve
from flows.run import noted, run_name
from tasks.comparison import Comparison
from tasks.datasets import get_dataset
from tasks.placement import Placement
from tasks.stage import Workspace

DEFAULTS, MODELS, HERE = JointLoopOptions(), MeasuredModels(), Placement()
Seeds = Annotated[int, Field(ge=0)]


class SuiteSummary(BaseModel):
    """What a run of the suite leaves behind.

    Attributes:
        name: of the run in the store.
        report: the comparison of all systems.
        steps: title and artifact of each step, in order.
        datasets: what was measured on, as it was asked for.
        preset: that it started from.
        tags: of the run in Prefect.
    """

    name: str
    flow_run_id: str
    store: str
    started: datetime
    finished: datetime
    report: Artifact
    steps: list[tuple[str, Artifact]]
    datasets: list[str] = []
    preset: str = "none"
    tags: list[str] = []


@flow(name="evaluate-suite")
def evaluate_suite(
    datasets: tuple[str, ...],
    preset: Preset = "none",
    options: JointLoopOptions = DEFAULTS,
    back_to_default: tuple[str, ...] = (),
    models: MeasuredModels = MODELS,
    seeds: Seeds = 3,
    placement: Placement = HERE,
    fresh: bool = False,
    store: str = "store",
) -> SuiteSummary:
    """Measure models on datasets, with significance tests, an audit of leakage, and a report.

    Args:
        datasets: Names such as scifact or nano-scifact; beir or nano-beir for all of them; folders or
            s3:// URLs in BEIR layout; NAME=LOCATION to say where one lies.
        preset: A configuration to start from; "none" is the paper's, as far as its code tells.
        options: The options of every stage; models, expand, evaluate and seed matter here. What
            differs from its default changes the preset.
        back_to_default: Options of the preset that get their default back, such as dpo.beta.
        models: Which models are measured, if not those that the options name.
        seeds: How many seeds of sampled expansions, apart from the greedy one.
        placement: Where each kind of stage runs. What a deployment's form begins with means "here" for
            the preset tiny, which one worker of the pool cpu can run alone.
        fresh: Make every artifact again, even if the store has it.
        store: Folder or s3:// URL that keeps every artifact.
    """
    started = datetime.now(UTC)
    options = resolve(preset, options, back_to_default)
    wanted = find_datasets(datasets)
    work = Workspace(
        store=store,
        seed=options.seed,
        device=options.device,
        placement=place(preset, placement),
        fresh=fresh,
    )
    with noted(work, started, "evaluate-suite", ", ".join(datasets), preset) as tags:
        pairs = find_pairs(work, options, models)
        found = [get_dataset(work, dataset, options.data) for dataset in wanted]

        systems = Comparison(work, options.evaluate, found)
        systems.bm25("bm25", "BM25")
        for number, pair in enumerate(pairs):
            prefix = f"{pair.title}: " if len(pairs) > 1 else ""
            measure_pair(systems, pair, number, prefix, seeds)
        report = systems.report()
        summary = record_suite(work, report, started, (datasets, preset, tags))
    work.publish(report, "report.md", "suite-report")
    return summary


def measure_pair(
    systems: Comparison, pair: ModelPair, number: int, prefix: str, seeds: int
) -> None:
    """Measure a pair of models: the query alone, with greedy expansions, and with sampled ones."""

    def name(kind: str, number: int = number) -> str:
        return f"{kind}-{number + 1}" if number else kind

    usage, title = pair.options.retriever, f"{prefix}query only"
    systems.dense(name("query"), title, pair.retriever, usage)
    written = {}
    if systems.options.greedy:
        written["greedy"] = systems.expand_greedily(pair.llm, pair.options, pair.title)
    if seeds:
        written["sampled"] = systems.expand(pair.llm, pair.options, pair.title, seeds)
    for kind, expansions in written.items():
        title = f"{prefix}+ expansion, {kind}"
        systems.dense(name(kind), title, pair.retriever, usage, expansions)
        systems.audit(name("query"), name(kind), expansions, pair.training)
        systems.ask(name("query"), name(kind), "Does the expansion help?", baseline=True)
    for kind in ("query", *written) if number else ():
        systems.ask(name(kind, 0), name(kind), "Are these models better than the first?")


def record_suite(
    work: Workspace,
    report: Artifact,
    started: datetime,
    asked: tuple[tuple[str, ...], str, list[str]],
) -> SuiteSummary:
    """Write the record of this run into the store, which keeps what it made from `expandr gc`."""
    datasets, preset, tags = asked
    summary = SuiteSummary(
        name=run_name(started),
        flow_run_id=str(flow_run.id),
        store=work.store,
        started=started,
        finished=datetime.now(UTC),
        report=report,
        steps=work.made,
        datasets=list(datasets),
        preset=preset,
        tags=tags,
    )
    record = {"kind": "evaluate-suite", **summary.model_dump(mode="json")}
    work.open().write_record(summary.name, record)
    return summary
