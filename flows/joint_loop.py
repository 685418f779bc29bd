"""The joint loop: the LLM learns to expand queries as the retriever likes it, and the retriever to
profit from the expansions; round after round, always rewarded by the current retriever.

    preference queries --expand--> candidates --+
    preference queries --answer--> answers -----+--reward--> pairs --DPO--> merge --> LLM'
    retriever queries  --expand by LLM'--> expansions --mine, train--> retriever'
    dev, test          --expand by LLM'--> evaluate(LLM', retriever') --> keep best | stop | next
"""

from collections import Counter

from prefect import flow, get_run_logger
from prefect.logging import disable_run_logger

from expandr_core.options.loop import JointLoopOptions
from expandr_core.store.artifacts import Artifact
from flows.measurements import (
    kept,
    measure_on_dev,
    measure_round,
    measure_start,
    measure_start_on_dev,
    open_comparison,
    train_control,
)
from flows.presets import Preset, place, resolve
from flows.run_record import RunRecord, noted, record_run
from tasks.branches import branches
from tasks.data import Data, prepare_data
from tasks.dpo import align
from tasks.dry_run import StepCount
from tasks.expand import write_expansions
from tasks.models import Models, build_llm, build_retriever, check_adapter, import_models
from tasks.pipeline import Pipeline
from tasks.placement import Placement
from tasks.preferences import make_pairs
from tasks.retriever import train_retriever

DEFAULTS, HERE = JointLoopOptions(), Placement()


@flow(name="joint-loop")
def joint_loop(
    preset: Preset = "none",
    options: JointLoopOptions = DEFAULTS,
    back_to_default: tuple[str, ...] = (),
    placement: Placement = HERE,
    fresh: bool = False,
    store: str = "store",
) -> RunRecord:
    """Align an LLM and a dense retriever with each other, and test the gain.

    Args:
        preset: A configuration to start from; "none" is the paper's, as far as its code tells.
        options: The options of every stage. What differs from its default changes the preset.
        back_to_default: Options of the preset to set back to their defaults, such as loop.rounds.
        placement: Where each kind of stage runs. For the preset tiny, the form's initial value means
            "here": one worker of the pool cpu runs everything.
        fresh: Make every artifact again, even if the store has it.
        store: Folder or s3:// URL that keeps every artifact.
    """
    options = resolve(preset, options, back_to_default)
    pipeline = Pipeline(store, options, place(preset, placement), fresh)
    named = options.data.collection or options.data.triples
    with noted(pipeline, "joint-loop", named, preset) as started:
        imported = import_models(pipeline)
        check_adapter(imported, options)
        data = prepare_data(pipeline)
        base = Models(
            0,
            imported.get("llm") or build_llm(pipeline, data),
            imported.get("retriever") or build_retriever(pipeline, data),
        )
        pipeline.steps.expected = len(list(pipeline.steps)) + count_steps(pipeline, data, base)
        best, report = run_rounds(pipeline, data, base)
        record = record_run(pipeline, started, report, best, data.corpus)
    pipeline.publish(report, "report.md", "joint-loop-report")
    return record


def count_steps(pipeline: Pipeline, data: Data, base: Models) -> int:
    """Count the steps of all rounds: about, as the loop may stop early, and lazy pairs take several."""
    counted = StepCount(pipeline.store, pipeline.options)
    with disable_run_logger():  # of rounds that do not take place
        run_rounds(counted, data, base)
    return len(list(counted.steps))


@branches()
def run_rounds(pipeline: Pipeline, data: Data, base: Models) -> tuple[Models, Artifact]:
    """Run round after round from the models of the start; return the best models and the report.

    Independent branches overlap: making pairs, training the control and measuring the start; then
    retraining the retriever and expanding the queries to measure on; then measuring on both splits.
    """
    options = pipeline.options.loop
    best = current = base
    rounds_from: Counter[int] = Counter()  # by the round whose models they start from
    pairs = pipeline.round(1).submit(  # before all else: the run ends here if there are too few
        "make the pairs", make_pairs, data.preference, base.llm, base.retriever
    )
    systems, dev = open_comparison(data, data.reported), open_comparison(data, "dev", "choose/")
    control = pipeline.submit("train the control", train_control, data, base.retriever)
    start = pipeline.submit("measure the start", measure_start, systems, base, control)
    on_dev = pipeline.submit("measure the start on dev", measure_start_on_dev, dev, base)

    for number in range(1, options.rounds + 1):
        this, previous = pipeline.round(number), best if options.next_round == "best" else current
        train = this.changed(seed=pipeline.options.seed + rounds_from[previous.round])
        rounds_from[previous.round] += 1
        if number > 1:
            pairs = train.submit(
                "make the pairs", make_pairs, data.preference, previous.llm, previous.retriever
            )
        llm = align(train, previous.llm, pairs.result())
        start_from = base if options.retriever_start == "base" else previous
        models = (llm, start_from.retriever, previous.retriever)
        retriever = train.submit("retrain the retriever", retrain_retriever, data, *models)
        which = ("sampled", f"round {number}")
        texts = this.submit(f"expand the {data.reported} queries", systems.expand, llm, *which)
        dev_texts = this.submit("expand the dev queries", dev.expand, llm, *which)
        current = Models(number, llm, retriever.result())
        for earlier in (start, on_dev):  # their systems come first in the reports
            earlier.result()
        measured = this.submit(
            "measure the round",
            measure_round,
            systems,
            control.result(),
            base,
            previous,
            current,
            texts.result(),
        )
        measure_on_dev(this, dev, current, dev_texts.result())
        measured.result()

        difference, significant = dev.difference(this, f"round-{best.round}", f"round-{number}")
        gained = significant and difference > 0
        get_run_logger().info("round %d changes nDCG@10 on dev by %+.3f", number, difference)
        best = current if difference > 0 else best
        if options.stop_without_gain and not gained:
            get_run_logger().info("that is no significant gain: the loop stops")
            break
    return best, systems.report(pipeline, kept=kept(best, current.round))


def retrain_retriever(
    pipeline: Pipeline, data: Data, llm: Artifact, start: Artifact, miner: Artifact
) -> Artifact:
    """Train the retriever on what the aligned LLM writes; the current retriever mines."""
    title, samples = (
        "expand the retriever's queries",
        pipeline.options.training.expansions_per_query,
    )
    expansions = write_expansions(pipeline, data.retriever, llm, title, "training", samples)
    return train_retriever(pipeline, data.retriever, data.collection, expansions, start, miner)
