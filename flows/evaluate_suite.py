"""Measure models on many datasets: BEIR, NanoBEIR, or your own.

dataset --> corpus --encode------------------------> vectors -------+
        \\-> judged queries --> alone -------------------------------+
                           --> expanded greedily, and by k seeds ---+--> evaluate --+
                           --> BM25 --------------------------------+               |
training data --> audit of leakage -------------------------------------------------+--> compare
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import pyarrow.parquet as pq
from prefect import flow, get_run_logger
from pydantic import Field

from expandr_core.data.catalog import Dataset, dev_of, find_datasets, taken_for_known
from expandr_core.data.split import normalise
from expandr_core.errors import DataError, naming
from expandr_core.options.loop import JointLoopOptions
from expandr_core.planning.cost_model import costly_options
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store
from flows.model_pairs import MeasuredModels, ModelPair, find_pairs
from flows.presets import Preset, place, resolve
from flows.report import publish_report
from flows.run_record import Record, end_record, noted, write_record
from tasks.comparison import Comparison, Measured
from tasks.datasets import check_datasets, get_dataset
from tasks.gating import Both, learn_gate_on, measure_variants
from tasks.pipeline import Pipeline
from tasks.placement import Placement
from tasks.references import ask_references, measure_references

DEFAULTS, MODELS, HERE = JointLoopOptions(), MeasuredModels(), Placement()
Seeds = Annotated[int, Field(ge=0)]


class SuiteSummary(Record):
    """What a run of the suite leaves behind.

    Attributes:
        datasets: that it was asked for.
        options: of the run.
        asked: which models it was asked for; of runs, their full names.
        seeds: of sampled expansions.
        measured: the options of each pair of models that cost depends on.
    """

    datasets: list[str]
    options: JointLoopOptions
    asked: MeasuredModels
    seeds: int
    measured: list[dict[str, Any]]


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
        back_to_default: Options of the preset to set back to their defaults, such as dpo.beta.
        models: Which models are measured, if not those that the options name.
        seeds: How many seeds of sampled expansions, apart from the greedy one.
        placement: Where each kind of stage runs. For the preset tiny, the form's initial value means
            "here": one worker of the pool cpu runs everything.
        fresh: Make every artifact again, even if the store has it.
        store: Folder or s3:// URL that keeps every artifact.
    """
    options = resolve(preset, options, back_to_default)
    wanted = find_datasets(datasets)
    pipeline = Pipeline(store, options, place(preset, placement), fresh)
    with noted(pipeline, "evaluate-suite", ", ".join(datasets), preset) as started:
        suite = find_suite(pipeline, wanted, models)
        notes = [*taken_for_known(datasets), *chosen_by(pipeline.open(), suite)]
        for note in notes:
            get_run_logger().warning(note)
        report = measure_suite(pipeline, suite, seeds, notes)
        facts = end_record(pipeline, started, report)
        runs = tuple(pair.run for pair in suite.pairs if pair.run)
        summary = SuiteSummary(
            **facts,
            datasets=list(datasets),
            options=options,
            asked=models.model_copy(update={"runs": runs}),
            seeds=seeds,
            measured=[options_of_cost(pipeline, pair) for pair in suite.pairs],
        )
        write_record(pipeline, summary, "evaluate-suite")
    publish_report(pipeline, summary, "suite-report")
    return summary


@dataclass(frozen=True)
class Suite:
    """What is measured, all of it in the store.

    Attributes:
        datasets: to measure on.
        pairs: of models.
        dev: queries to learn a gate on, if one is to be learned.
    """

    datasets: list[Measured]
    pairs: list[ModelPair]
    dev: Measured | None = None


def check_suite_data(
    options: JointLoopOptions, wanted: list[Dataset], models: MeasuredModels
) -> None:
    """Check that the datasets are there, and the one to learn a gate on.

    Raises:
        DataError: if one is not, or no gate is wanted.
    """
    check_datasets(wanted)
    if not models.gate_on:
        return
    if options.gate.mode == "off":
        raise DataError("gate.mode is 'off', so no gate is learned; choose another mode")
    with naming("gate_on"):
        check_datasets([dev_of(models.gate_on)])


def find_suite(pipeline: Pipeline, wanted: list[Dataset], models: MeasuredModels) -> Suite:
    """Get the datasets, and find or import the models.

    Raises:
        DataError: if a model or a dataset is not there, no gate is wanted, or some of its queries are
            measured.
    """
    check_suite_data(pipeline.options, wanted, models)
    pairs = find_pairs(pipeline, models, get_run_logger().info)
    datasets = [get_dataset(pipeline, dataset) for dataset in wanted]
    if not models.gate_on:
        return Suite(datasets, pairs)
    dev = get_dataset(pipeline, dev_of(models.gate_on))
    [evaluation] = dev.subsets.values()
    learned = _texts(store := pipeline.open(), evaluation.queries)
    for key, measured in Comparison(datasets).evaluations.items():
        if both := learned & _texts(store, measured.queries):
            raise DataError(
                f"{len(both)} of the {len(learned)} dev queries of {models.gate_on} are queries of "
                f"{key}, too, such as {min(both)!r}, so a gate would be measured on what it was learned "
                "on; take them out of qrels/dev.tsv, or give other dev queries"
            )
    return Suite(datasets, pairs, dev)


def _texts(store: Store, queries: Artifact) -> set[str]:
    """Return the normalised texts of queries, whatever their ids."""
    table = pq.read_table(store.local(queries), columns=["query"])
    return {normalise(text) for text in table["query"].to_pylist()}


def chosen_by(store: Store, suite: Suite) -> list[str]:
    """Say which queries are measured although a run chose its round and its gate by them."""
    notes = list[str]()
    if not any(pair.dev for pair in suite.pairs):
        return notes
    measured = {
        key: _texts(store, each.queries)
        for key, each in Comparison(suite.datasets).evaluations.items()
    }
    for pair in suite.pairs:
        dev = set[str]().union(*(_texts(store, queries) for queries in pair.dev))
        notes += [
            f"{len(dev & asked)} of the {len(asked)} queries of {key} are dev queries of {pair.run}, by "
            "which it chose its round and its gate: its scores on them may be too high"
            for key, asked in measured.items()
            if dev & asked
        ]
    return notes


def measure_suite(
    pipeline: Pipeline, suite: Suite, seeds: int, notes: Sequence[str] = ()
) -> Artifact:
    """Measure the models on the datasets; return the comparison of all systems.

    Args:
        pipeline: of the suite.
        suite: what is measured.
        seeds: of sampled expansions.
        notes: sentences for the end of the verdict.
    """
    systems, pairs = Comparison(suite.datasets), suite.pairs
    systems.notes.extend(f"{note}." for note in notes)
    measure_references(pipeline, systems)
    if suite.dev:
        pairs = learn_gates(pipeline, pairs, suite.dev)
    for number, pair in enumerate(pairs):
        prefix = f"{pair.title}: " if len(pairs) > 1 else ""
        measure_pair(pipeline, systems, pair, number, prefix, seeds)
    return systems.report(pipeline)


def learn_gates(pipeline: Pipeline, pairs: list[ModelPair], dev: Measured) -> list[ModelPair]:
    """Learn a gate for each pair of models on dev queries."""
    learned = []
    for number, pair in enumerate(pairs):
        view, name = with_models_of(pipeline, pair), f"-{number + 1}" if number else ""
        gate = learn_gate_on(view, dev, pair.llm, pair.retriever, name, pair.title)
        learned.append(replace(pair, gate=gate))
    return learned


def options_of_cost(pipeline: Pipeline, pair: ModelPair) -> dict[str, Any]:
    """Return the options that the cost of a step with these models depends on."""
    return costly_options(pair.options.model_copy(update={"device": pipeline.options.device}))


def with_models_of(pipeline: Pipeline, pair: ModelPair) -> Pipeline:
    """View the pipeline with the options that a pair of models is used with."""
    options = pair.options
    retriever = options.measured_retriever
    return pipeline.changed(llm=options.llm, retriever=retriever, expand=options.expand)


def measure_pair(
    pipeline: Pipeline,
    systems: Comparison,
    pair: ModelPair,
    number: int,
    prefix: str,
    seeds: int,
) -> None:
    """Measure a pair of models: the query alone, with greedy expansions, and with sampled ones."""

    def name(kind: str, number: int = number) -> str:
        return f"{kind}-{number + 1}" if number else kind

    pipeline = with_models_of(pipeline, pair)
    systems.dense(pipeline, name("query"), f"{prefix}query only", pair.retriever)
    written = {}
    if pipeline.options.evaluate.greedy:
        written["greedy"] = systems.expand_greedily(pipeline, pair.llm, name("greedy"), pair.title)
    if seeds:
        written["sampled"] = systems.expand(pipeline, pair.llm, name("sampled"), pair.title, seeds)
    for kind, expansions in written.items():
        title = f"{prefix}+ expansion, {kind}"
        systems.dense(pipeline, name(kind), title, pair.retriever, expansions)
        systems.audit(pipeline, name("query"), name(kind), expansions, pair.training)
        systems.ask(name("query"), name(kind), "Does the expansion help?", baseline=True)
    if written:
        suffix, often = f"-{number + 1}" if number else "", name([*written][-1])
        both = Both(name("query"), often, pair.retriever, baseline=name("query"), suffix=suffix)
        measure_variants(pipeline, systems, both, pair.gate)
        ask_references(systems, often, "Is the query with its expansion better than {}?")
    for kind in ("query", *written) if number else ():
        systems.ask(name(kind, 0), name(kind), "Are these models better than the first?")
