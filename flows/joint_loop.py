"""The joint loop: the LLM learns to expand queries as the retriever likes it, and the retriever to
profit from the expansions; round after round, always rewarded by the current retriever.

    preference queries --expand--> candidates --+
    preference queries --answer--> answers -----+--reward--> pairs --DPO--> merge --> LLM'
    retriever queries  --expand by LLM'--> expansions --mine, train--> retriever'
    dev, test          --expand by LLM'--> evaluate(LLM', retriever') --> keep best | stop | next
"""

from datetime import UTC, datetime

from prefect import flow, get_run_logger

from expandr_core.options.loop import JointLoopOptions
from expandr_core.store.artifacts import Artifact
from flows.measurements import kept, measure_on_dev, measure_round, measure_start, open_comparison
from flows.presets import Preset, place, resolve
from flows.run import Models, Run, Summary, noted, record_run
from tasks.data import prepare_data
from tasks.dpo import align
from tasks.expand import write_expansions
from tasks.models import build_llm, build_retriever, check_adapter, import_models
from tasks.placement import Placement
from tasks.preferences import make_pairs
from tasks.retriever import train_retriever
from tasks.stage import Workspace

DEFAULTS, HERE = JointLoopOptions(), Placement()


@flow(name="joint-loop")
def joint_loop(
    preset: Preset = "none",
    options: JointLoopOptions = DEFAULTS,
    back_to_default: tuple[str, ...] = (),
    placement: Placement = HERE,
    fresh: bool = False,
    store: str = "store",
) -> Summary:
    """Align an LLM with a dense retriever and the retriever with the LLM, and prove the gain.

    Args:
        preset: A configuration to start from; "none" is the paper's, as far as its code tells.
        options: The options of every stage. What differs from its default changes the preset.
        back_to_default: Options of the preset that get their default back, such as loop.rounds.
        placement: Where each kind of stage runs. What a deployment's form begins with means "here" for
            the preset tiny, which one worker of the pool cpu can run alone.
        fresh: Make every artifact again, even if the store has it.
        store: Folder or s3:// URL that keeps every artifact.
    """
    started = datetime.now(UTC)
    options = resolve(preset, options, back_to_default)
    work = Workspace(
        store=store,
        seed=options.seed,
        device=options.device,
        placement=place(preset, placement),
        fresh=fresh,
    )
    named = options.data.collection or options.data.triples
    with noted(work, started, "joint-loop", named, preset) as tags:
        imported = import_models(work, options)
        check_adapter(imported, options)
        data = prepare_data(work, options.data, options.world)
        llm = imported.get("llm") or build_llm(work, data, options)
        retriever = imported.get("retriever") or build_retriever(work, data, options)
        run = Run(work, data, options)
        best, report = run_rounds(run, Models(0, llm, retriever))
        summary = record_run(run, report, best, started, preset, tags)
    work.publish(report, "report.md", "joint-loop-report")
    return summary


def run_rounds(run: Run, base: Models) -> tuple[Models, Artifact]:
    """Run round after round from the models of the start; return the best models and the report."""
    options, data = run.options, run.data
    best = current = base
    pairs = choose_pairs(run, current, ", round 1")  # if they are too few, before all else
    systems, dev = open_comparison(run, data.reported), open_comparison(run, "dev")
    control = measure_start(run, systems, base)
    measure_on_dev(run, dev, base)

    for number in range(1, options.loop.rounds + 1):
        when = f", round {number}"
        if number > 1:
            pairs = choose_pairs(run, current, when)
        llm = align(run.work, current.llm, pairs, options, when)
        start = base if options.loop.retriever_start == "base" else current
        retriever = retrain_retriever(run, llm, start, current, when)
        previous, current = current, Models(number, llm, retriever)
        measure_round(run, systems, control, base, previous, current)
        measure_on_dev(run, dev, current)

        difference, significant = dev.difference(f"round-{best.round}", f"round-{number}")
        gained = significant and difference > 0
        get_run_logger().info("round %d changes nDCG@10 on dev by %+.3f", number, difference)
        best = current if difference > 0 else best
        if options.loop.stop_without_gain and not gained:
            get_run_logger().info("that is no significant gain: the loop stops")
            break
    return best, systems.report(kept=kept(best, current.round))


def choose_pairs(run: Run, current: Models, when: str) -> Artifact:
    """Let the LLM write candidates and answers, reward them, and choose the pairs to align it with."""
    models = (current.llm, current.retriever)
    return make_pairs(run.work, run.data.preference, *models, run.options, when)


def retrain_retriever(
    run: Run, llm: Artifact, start: Models, current: Models, when: str
) -> Artifact:
    """Train the retriever on what the aligned LLM writes; the current retriever mines."""
    work, data, options = run.work, run.data, run.options
    title = f"expand the retriever's queries{when}"
    samples = options.training.expansions_per_query
    expansions = write_expansions(work, data.retriever, llm, options, title, samples)
    return train_retriever(
        work,
        data.retriever,
        data.collection,
        start.retriever,
        current.retriever,
        expansions,
        options,
        f"train the retriever{when}",
    )
