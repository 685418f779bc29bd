"""The gate at the end of a run: its models become the champion only if they are better than it.

Candidate and champion write expansions of the same dev queries, with the same seeds, and search the
same corpus: that of the candidate's run, whatever the champion was measured on before. Evaluations and
test are artifacts of the run, so that the decision can be explained. If somebody else moves the champion
meanwhile, the candidate is tested again, against the new one.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event
from prefect.runtime import flow_run

from expandr_core.data.catalog import Dataset, find_datasets
from expandr_core.errors import DataError, naming
from expandr_core.evaluation.comparison import MeasuredDataset, read_comparison
from expandr_core.evaluation.render import counted
from expandr_core.options.loop import JointLoopOptions
from expandr_core.options.promotion import PromotionOptions
from expandr_core.store.artifacts import Artifact
from expandr_core.store.registered_model import CHAMPION, Author, Version, model_name
from expandr_core.store.registry import Overtaken, judge, read_model
from flows.champions import named_after, version_of
from flows.run_record import RunRecord, find_run
from tasks.comparison import Comparison, Measured
from tasks.data import Data
from tasks.datasets import check_datasets, get_dataset
from tasks.models import Models
from tasks.pipeline import Pipeline
from tasks.progress import only_shown

OWN = "dev"  # the dataset whose gain decides
EVENT = "expandr.champion"
ARTIFACT = "promotion"


@dataclass(frozen=True)
class Decision:
    """What the gate has found.

    Attributes:
        passed: whether the candidate becomes the champion.
        reason: in a sentence.
        numbers: of the test; empty if there was nothing to test.
        as_it_was: whether there is nothing to note, as there is no candidate, or no test of it.
    """

    passed: bool
    reason: str
    numbers: dict[str, Any] = field(default_factory=dict)
    as_it_was: bool = False


class Side(NamedTuple):
    """Models by role, and the options of the run that kept them."""

    options: JointLoopOptions
    models: dict[str, Artifact]


@dataclass(frozen=True)
class Gate:
    """What the run's models and the champion are compared on: its data, and other collections."""

    data: Data
    others: Callable[[], list[Measured]]
    attempt: int = 1


def check_promotion(options: PromotionOptions) -> None:
    """Check beforehand that there are such collections, if the gate is asked for.

    Raises:
        DataError: if not, or one is called "dev" as the run's own queries are.
    """
    if not options.enabled:
        return
    with naming("promotion.tolerance"):
        if OWN in tolerated(options):
            raise DataError(f"name the collection {OWN!r} otherwise: NAME=LOCATION")
        check_datasets(_others(options))


def tolerated(options: PromotionOptions) -> dict[str, float]:
    """Return the largest loss that is accepted, by the name of the dataset."""
    return {
        dataset.name: loss
        for reference, loss in options.tolerance.items()
        for dataset in find_datasets([reference])
    }


def judge_run(pipeline: Pipeline, data: Data, record: Callable[[], RunRecord]) -> RunRecord:
    """Test the models of a run against the champion, and promote or refuse them; return its record.

    Args:
        pipeline: of the run.
        data: of the run.
        record: writes the record of the run, with the steps so far.
    """
    run, store = record(), pipeline.open()  # whatever the gate meets, the run has its results
    name, actor = named_after(run), f"joint-loop {flow_run.name}"
    others = functools.cache(partial(_other_collections, pipeline))
    attempt = 0
    while True:
        attempt += 1
        champion = read_model(store, name).at(CHAMPION)
        decision = _decide(pipeline, Gate(data, others, attempt), run, champion)
        run = record()
        if decision.as_it_was:
            break
        author = Author(actor, decision.reason, decision.numbers)
        try:
            version, tested = version_of(store, run, actor, {}), champion.number if champion else 0
            judge(store, name, version, tested, decision.passed, author)
            break
        except Overtaken as overtaken:
            get_run_logger().info("%s; testing again", overtaken)
    _tell(name, run, decision)
    return run


def _others(options: PromotionOptions) -> list[Dataset]:
    return find_datasets(list(options.tolerance)) if options.tolerance else []


def _other_collections(pipeline: Pipeline) -> list[Measured]:
    return [get_dataset(pipeline, each) for each in _others(pipeline.options.promotion)]


def plan_gate(pipeline: Pipeline, planned: Pipeline, data: Data, best: Models) -> None:
    """Plan the gate of a run: one test against the champion of today, if there is one.

    Args:
        pipeline: reads the other collections, as it has read the run's own.
        planned: makes nothing.
        data: of the run.
        best: the models that the run is planned to keep.
    """
    store, options = pipeline.open(), pipeline.options
    champion = read_model(store, model_name(options.data.collection or options.data.triples)).at(
        CHAMPION
    )
    if champion and (run := find_run(store, champion.run)):
        others = _other_collections(pipeline)
        candidate = Side(options, {"llm": best.llm, "retriever": best.retriever})
        gate = Gate(data, lambda: others)
        _measure(planned, gate, champion, Side(run.options, run.models), candidate)


def _decide(pipeline: Pipeline, gate: Gate, run: RunRecord, champion: Version | None) -> Decision:
    """Compare the run with the champion, unless there is none, or it has the same models."""
    if not champion:
        return Decision(True, "There was no champion, so there was nothing to test against.")
    which = f"version {champion.number}, the champion"
    champion_run = find_run(pipeline.open(), champion.run)
    if not champion_run:
        missing = f"The run {champion.run} of {which}, is not in the store any more"
        return Decision(False, f"{missing}; promote another one by hand.", as_it_was=True)
    if _use(run) == _use(champion_run):
        if run.models["corpus"].digest == champion_run.models["corpus"].digest:
            return Decision(False, f"The models are those of {which}.", as_it_was=True)
        return Decision(True, f"The models are those of {which}, with the corpus of today.")
    sides = (Side(each.options, each.models) for each in (champion_run, run))
    report = _measure(pipeline, gate, champion, *sides)
    comparison = read_comparison(pipeline.open().local(report))
    tests = {each["dataset"]: each for each in comparison["contrasts"]}
    faults = faults_of(tests, pipeline.options.promotion)
    own = tests[OWN]
    said = f"{own['difference']:+.4f} nDCG@10 on dev against version {champion.number}"
    said += f" (p = {own['corrected_p']:.4f}, {counted(own['queries'], 'query', 'queries')})"
    names = ("difference", "p", "corrected_p", "queries", "clusters", "wins", "losses")
    numbers = {dataset: {each: test[each] for each in names} for dataset, test in tests.items()}
    numbers |= {"report": report.model_dump(mode="json", include={"key", "digest"})}
    numbers |= {"asked": pipeline.options.promotion.model_dump(mode="json")}
    if faults:
        return Decision(False, f"{said}: {'; '.join(faults)}.", numbers)
    return Decision(True, f"{said}.", numbers)


def faults_of(tests: dict[str, dict[str, Any]], options: PromotionOptions) -> list[str]:
    """Say why a candidate is not promoted; nothing if it is.

    Args:
        tests: the contrast of champion and candidate on each dataset, as in comparison.json.
        options: what is asked for.

    >>> test = {"difference": 0.02, "corrected_p": 0.2, "effect": "unclear", "clusters": 40}
    >>> faults_of({"dev": test}, PromotionOptions())
    ['the gain is not significant at the level 0.05']
    """
    own, faults = tests[OWN], list[str]()
    if own["difference"] <= 0:
        faults.append("that is no gain")
    elif own["difference"] < options.minimum_gain:
        faults.append(f"the gain is below promotion.minimum_gain, {options.minimum_gain:g}")
    if own["difference"] > 0 and own["effect"] == "too few":
        few = counted(own["clusters"], "observation is", "observations are")
        faults.append(f"{few} too few to tell at {options.level:g}")
    elif own["difference"] > 0 and not own["corrected_p"] < options.level:
        faults.append(f"the gain is not significant at the level {options.level:g}")
    for name, loss in tolerated(options).items():
        if tests[name]["difference"] < -loss:
            change = f"{tests[name]['difference']:+.4f}"
            faults.append(f"{change} on {name} is more than the tolerated loss of {loss:g}")
    return faults


def _measure(
    pipeline: Pipeline, gate: Gate, version: Version, champion: Side, candidate: Side
) -> Artifact:
    """Measure candidate and champion, each used as in its own run; return the comparison."""
    asked, purpose = pipeline.options.promotion, f"promotion/{gate.attempt}/"
    own = Measured(MeasuredDataset(name=OWN), {"": gate.data.evaluations["dev"]})
    systems = Comparison([own, *gate.others()], purpose=purpose)
    titles = {"champion": f"champion, version {version.number}", "candidate": "candidate"}
    evaluate = pipeline.options.evaluate
    own_similarity = evaluate.model_copy(update={"similarity": "retriever"})
    for (name, title), each in zip(titles.items(), (champion, candidate), strict=True):
        options = each.options
        view = pipeline.changed(
            llm=options.llm,
            retriever=options.measured_retriever,
            expand=options.expand,
            evaluate=own_similarity,
        )
        texts = systems.expand(view, each.models["llm"], name, title, asked.seeds)
        systems.dense(view, name, title, each.models["retriever"], texts)
    question = "Is the candidate better than the champion?"
    systems.ask("champion", "candidate", question, baseline=True)
    strict = evaluate.significance.model_copy(update={"significance_level": asked.level})
    view = pipeline.changed(evaluate=evaluate.model_copy(update={"significance": strict}))
    return systems.report(view, f"compare with the {titles['champion']}", purpose)


def _use(run: RunRecord) -> tuple[Any, ...]:
    """Return all that decides how the models of a run expand and search."""
    options = run.options
    models = {role: each.digest for role, each in run.models.items() if role != "corpus"}
    return (
        models,
        options.llm,
        options.expand.prompt,
        options.expand.expansion,
        options.measured_retriever,
    )


def _tell(name: str, run: RunRecord, decision: Decision) -> None:
    """Say in the log, as an artifact and by an event, which automations can hear, what was decided."""
    outcome = "promoted" if decision.passed else "refused"
    log = get_run_logger()
    (log.info if decision.passed else log.warning)("%s: %s. %s", name, outcome, decision.reason)
    lines = [f"# {name}: {outcome}", "", decision.reason, ""]
    if "report" in decision.numbers:
        lines.append(f"`expandr show {decision.numbers['report']['key']}` shows the test.")
    with only_shown(ARTIFACT):
        create_markdown_artifact("\n".join(lines), key=ARTIFACT, description=f"run {run.name}")
        emit_event(
            f"{EVENT}.{outcome}",
            resource={"prefect.resource.id": f"expandr.model.{name}"},
            payload={"model": name, "run": run.name, "outcome": outcome, "reason": decision.reason},
        )
