"""The joint loop: the LLM learns to expand queries as the retriever likes it, and the retriever to
profit from the expansions; round after round, always rewarded by the current retriever.

    preference queries --expand--> candidates --+
    preference queries --answer--> answers -----+--reward--> pairs --DPO--> merge --> LLM'
    retriever queries  --expand by LLM'--> expansions --mine, train--> retriever'
    dev, test          --expand by LLM'--> evaluate(LLM', retriever') --> keep best | stop | next

`loop.order` can swap the first two lines with the third, or leave either out.
"""

from collections import Counter
from functools import partial

from prefect import flow, get_run_logger
from prefect.logging import disable_run_logger

from expandr_core.options.loop import JointLoopOptions
from expandr_core.store.artifacts import Artifact
from flows.choice import choose, measure_on_dev, measure_start_on_dev
from flows.measurements import RoundsReport, as_trained
from flows.presets import Preset, place, resolve
from flows.promotion import check_promotion, judge_run
from flows.report import publish_report
from flows.run_record import RunRecord, noted, record_run
from tasks.align import align
from tasks.branches import branches
from tasks.data import Data, prepare_data
from tasks.dry_run import StepCount
from tasks.expand import write_expansions
from tasks.imports import check_start, import_start
from tasks.models import Models, build_llm, build_retriever, check_adapter, import_models
from tasks.pipeline import Future, Pipeline, done
from tasks.placement import Placement
from tasks.preferences import make_pairs, reward_corpus
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
    check_promotion(options.promotion)
    pipeline = Pipeline(store, options, place(preset, placement), fresh)
    named = options.data.collection or options.data.triples
    with noted(pipeline, "joint-loop", named, preset) as started:
        data, base = start(pipeline)
        pipeline.steps.expected = len(list(pipeline.steps)) + count_steps(pipeline, data, base)
        best, report = run_rounds(pipeline, data, base)
        write = partial(record_run, pipeline, started, report, best, data.corpus)
        record = judge_run(pipeline, data, write) if options.promotion.enabled else write()
    publish_report(pipeline, record, "joint-loop-report")
    return record


def start(pipeline: Pipeline) -> tuple[Data, Models]:
    """Return the data, with what is imported, and the models of round 0: imported, or built."""
    check_start(pipeline.options)
    imported = import_models(pipeline)
    check_adapter(imported, pipeline.options)
    data = prepare_data(pipeline)
    base = start_models(pipeline, data, imported)
    return import_start(pipeline, data, base.llm), base


def start_models(pipeline: Pipeline, data: Data, imported: dict[str, Artifact]) -> Models:
    """Return the models of round 0: those that are imported, and else built."""
    llm = imported.get("llm") or build_llm(pipeline, data)
    retriever = imported.get("retriever") or build_retriever(pipeline, data)
    return Models(0, llm, retriever, imported.get("reward_encoder"))


def count_steps(pipeline: Pipeline, data: Data, base: Models) -> int:
    """Count the steps of all rounds: about, as the loop may stop early, and lazy pairs take several."""
    counted = StepCount(pipeline.store, pipeline.options)
    with disable_run_logger():  # of rounds that do not take place
        run_rounds(counted, data, base)
    return len(list(counted.steps))


@branches()
def run_rounds(pipeline: Pipeline, data: Data, base: Models) -> tuple[Models, Artifact]:
    """Run round after round from the models of the start; return the best models and the report."""
    report = RoundsReport(data)
    best, _ = train_rounds(pipeline, data, base, report)
    written, best = report.end(pipeline, best)
    return best, written


def train_rounds(
    pipeline: Pipeline, data: Data, base: Models, report: RoundsReport | None = None
) -> tuple[Models, Models]:
    """Train round after round; return the models of the best round on dev, and of the last.

    Independent branches overlap: making pairs, training the control and measuring the start; then
    retraining the retriever and expanding the queries to measure on; then measuring on both splits.
    Without a report only dev is measured, and that only to choose between rounds.
    """
    options = pipeline.options.loop
    best = current = base
    rounds_from: Counter[int] = Counter()  # by the round whose models they start from
    begun: list[Future[object]] = []
    choices = report.choices if report else []
    dev = (report or RoundsReport(data)).dev if report or options.rounds > 1 else None

    for number in range(1, options.rounds + 1):
        this, previous = pipeline.round(number), best if options.next_round == "best" else current
        train = this.changed(seed=pipeline.options.seed + rounds_from[previous.round])
        rounds_from[previous.round] += 1
        pairs = None
        if options.order in ("align_first", "align_only"):  # the run ends here if they are too few
            models = (base, previous.llm, previous.retriever)
            pairs = train.submit("make the pairs", rewarded_pairs, data, *models)
        if number == 1:
            begun += report.begin(pipeline, base) if report else []
            if dev:
                title = "measure the start on dev"
                begun.append(pipeline.submit(title, measure_start_on_dev, dev, base))
        llm, retriever = train_models(train, data, base, previous, pairs)
        this = as_trained(this, base, llm)
        which = ("sampled", f"round {number}")
        texts = report.expand(this, llm, *which) if report else None
        dev_texts = this.submit("expand the dev queries", dev.expand, llm, *which) if dev else None
        current = Models(number, llm, retriever.result())
        if not (dev and dev_texts):
            best = current
            continue
        for earlier in begun:  # their systems come first in the reports
            earlier.result()
        if report and texts:
            begun = [report.measure(this, base, previous, current, texts.result())]
        measure_on_dev(this, dev, current, dev_texts.result())
        for measured in begun:
            measured.result()
        choices.append(choose(this, dev, best, current))
        best = current if choices[-1].kept else best
        if options.stop_without_gain and not choices[-1].kept:
            get_run_logger().info("the loop stops")
            break
    return best, current


def rewarded_pairs(
    pipeline: Pipeline, data: Data, base: Models, llm: Artifact, retriever: Artifact
) -> Artifact | None:
    """Make the pairs of a round, rewarded by the retriever or by the encoder that was asked for.

    The first round takes the imported pairs, or none if it starts behind them.
    """
    if pipeline.current_round == 1:
        if data.pairs:
            return data.pairs
        if data.expansions and pipeline.options.loop.order != "retriever_first":
            return None
    encoder, corpus = base.reward_encoder or retriever, reward_corpus(pipeline, data)
    return make_pairs(pipeline, data.preference, llm, encoder, corpus)


def train_models(
    pipeline: Pipeline,
    data: Data,
    base: Models,
    previous: Models,
    pairs: Future[Artifact | None] | None,
) -> tuple[Artifact, Future[Artifact]]:
    """Train the LLM and the retriever of a round, in the order of `loop.order`.

    Args:
        pipeline: of the round.
        data: of the run.
        base: the models of the start.
        previous: the models that the round starts from.
        pairs: rewarded by the previous retriever, if the LLM is aligned before a retriever is trained.
    """
    order, llm, retriever = pipeline.options.loop.order, previous.llm, done(previous.retriever)
    start = base if pipeline.options.loop.retriever_start == "base" else previous

    def retrain(writer: Artifact) -> Future[Artifact]:
        models = (writer, start.retriever, previous.retriever)
        return pipeline.submit("retrain the retriever", retrain_retriever, data, *models)

    if order == "retriever_first":
        retriever = retrain(llm)
        pairs = done(rewarded_pairs(pipeline, data, base, llm, retriever.result()))
    if pairs:
        llm = align(pipeline, llm, pairs.result())
    if order in ("align_first", "retriever_only"):
        retriever = retrain(llm)
    return llm, retriever


def retrain_retriever(
    pipeline: Pipeline, data: Data, llm: Artifact, start: Artifact, miner: Artifact
) -> Artifact:
    """Train the retriever on what the LLM writes; the current retriever mines.

    The first round trains it on the imported expansions, if there are any.
    """
    title, samples = (
        "expand the retriever's queries",
        pipeline.options.training.expansions_per_query,
    )
    expansions = data.expansions if pipeline.current_round == 1 else None
    if expansions is None:
        expansions = write_expansions(pipeline, data.retriever, llm, title, "training", samples)
    return train_retriever(pipeline, data.retriever, data.collection, expansions, start, miner)
