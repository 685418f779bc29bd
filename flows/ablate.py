"""Ablations: the loop once for every line of a list, over shared artifacts, compared in one table.

for each seed:
    base    options         --> loop --> last round's models --> evaluate --+
    line    options but one --> loop --> last round's models --> evaluate --+--> compare --> table
    ...                                                                     |
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated

from prefect import flow, get_run_logger
from pydantic import Field

from expandr_core.errors import DataError, first_line
from expandr_core.evaluation.comparison import MeasuredDataset, System
from expandr_core.options.loop import JointLoopOptions
from expandr_core.planning.added_cost import added_costs
from expandr_core.stages.ablation import AblationOptions, TableRow
from expandr_core.store.artifacts import Artifact
from flows.ablation_lines import BASE, QUERY, AblationLine, variants
from flows.joint_loop import start, train_rounds
from flows.measurements import open_comparison
from flows.presets import Preset, place, resolve
from flows.report import publish_report
from flows.run_record import Record, Started, end_record, noted, write_record
from tasks.branches import branches
from tasks.comparison import Comparison, Measured
from tasks.data import Data, Evaluation
from tasks.pipeline import Pipeline
from tasks.placement import Placement

DEFAULTS, HERE = JointLoopOptions(), Placement()
JOINT, PLAIN = "joint", "plain"
Seeds = Annotated[int, Field(ge=1)]


class AblationSummary(Record):
    """What a run of ablations leaves behind.

    Attributes:
        options: of the base.
        table: rows, differences and costs; `report` has the comparison behind it.
    """

    options: JointLoopOptions
    table: Artifact


@dataclass(frozen=True)
class Outcome:
    """What a line has come to with one seed.

    Attributes:
        data: that it was measured on.
        measured: evaluations by system: JOINT, PLAIN (the base retriever) and, of the base, QUERY.
    """

    data: Data
    measured: dict[str, Artifact]


@dataclass(frozen=True)
class Lines:
    """All lines with all seeds.

    Attributes:
        outcomes: by line and seed.
        failed: why a line has no result.
    """

    outcomes: dict[tuple[str, int], Outcome] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


@flow(name="ablate")
def ablate(
    lines: tuple[AblationLine, ...],
    preset: Preset = "none",
    options: JointLoopOptions = DEFAULTS,
    back_to_default: tuple[str, ...] = (),
    seeds: Seeds = 3,
    placement: Placement = HERE,
    fresh: bool = False,
    store: str = "store",
) -> AblationSummary:
    """Run the loop with one change after another, and compare all in one table.

    Args:
        lines: The changes, one a row; the base comes first by itself.
        preset: A configuration to start from; "none" is the paper's, as far as its code tells.
        options: The options of the base. What differs from its default changes the preset.
        back_to_default: Options of the preset to set back to their defaults, such as loop.rounds.
        seeds: How many seeds, from the base's on; each trains everything anew.
        placement: Where each kind of stage runs. For the preset tiny, the form's initial value means
            "here": one worker of the pool cpu runs everything.
        fresh: Make every artifact again, even if the store has it.
        store: Folder or s3:// URL that keeps every artifact.
    """
    options = resolve(preset, options, back_to_default)
    wanted = variants(options, lines)
    pipeline = Pipeline(store, options, place(preset, placement), fresh)
    named = options.data.collection or options.data.triples
    with noted(pipeline, "ablate", named, preset) as started:
        found = Lines()
        for seed in range(options.seed, options.seed + seeds):
            run_lines(pipeline, wanted, seed, found)
        report = compare_lines(pipeline, lines, found)
        table = lay_out(pipeline, lines, found, report)
        summary = record_ablation(pipeline, started, report, table)
    pipeline.publish(table, "ablation.md", "ablation-table")
    publish_report(pipeline, summary, "ablation-report")
    return summary


def run_lines(
    pipeline: Pipeline, wanted: Mapping[str, JointLoopOptions], seed: int, found: Lines
) -> None:
    """Run every line with a seed, the base first; a line whose input is at fault ends there."""
    for name, options in wanted.items():
        if name in found.failed:
            continue
        seeded = options.model_copy(update={"seed": seed})
        view = replace(pipeline, options=seeded).within(part_of(name, seed))
        base = found.outcomes.get((BASE, seed))
        try:
            found.outcomes[name, seed] = run_line(view, base)
        except DataError as error:
            if name == BASE:
                raise
            get_run_logger().warning("line %s, seed %d: %s", name, seed, error)
            found.failed[name] = f"seed {seed}: {first_line(error)}"


def part_of(line: str, seed: int) -> str:
    """Name the part of the run that is a line with a seed."""
    return f"seed {seed}, {line}"


@branches()
def run_line(pipeline: Pipeline, base: Outcome | None) -> Outcome:
    """Run the loop, and measure what the models of its last round reach, as the line's options say.

    Args:
        pipeline: of the line.
        base: the outcome of the base with this seed; None if this is the base.

    Raises:
        DataError: also if the line changes what is measured.
    """
    data, models = start(pipeline)
    if base and _measured_on(data) != _measured_on(base.data):
        raise DataError(
            "it changes the queries that are measured or their judgements, so it cannot be compared "
            "with the base; make it the configuration of a table of its own"
        )
    _, last = train_rounds(pipeline, data, models)
    systems = open_comparison(data, data.reported)
    texts = systems.expand(pipeline, last.llm, "sampled", "last round")
    systems.dense(pipeline, JOINT, "last round's models", last.retriever, texts)
    systems.dense(pipeline, PLAIN, "base retriever", models.retriever, texts)
    if base is None:
        systems.dense(pipeline, QUERY, "query only", models.retriever)
    measured = {role.split("/")[-2]: made for role, made in systems.inputs.items()}
    return Outcome(data, measured)


def _measured_on(data: Data) -> tuple[str, ...]:
    split = data.evaluations[data.reported]
    return split.queries.digest, split.qrels.digest


def compare_lines(pipeline: Pipeline, lines: tuple[AblationLine, ...], found: Lines) -> Artifact:
    """Compare every line with the base, paired by seed and query."""
    splits = _splits(found)
    data = next(iter(found.outcomes.values())).data
    dataset = MeasuredDataset(name=data.reported, subsets=tuple(splits))
    systems = Comparison(
        [Measured(dataset, splits)], subsets_are="worlds" if data.world else "seeds"
    )

    def add(name: str, title: str, line: str, measured: str) -> None:
        systems.systems[name] = System(name=name, title=title)
        for (other, seed), outcome in found.outcomes.items():
            if other == line:
                role = f"measured/{data.reported}/seed-{seed}/{name}/0"
                systems.inputs[role] = outcome.measured[measured]

    add(QUERY, "query only", BASE, QUERY)
    for name, title in titles(lines).items():
        if name in found.failed:
            continue
        add(name, title, name, JOINT)
        question = "What does this change bring?"
        before = QUERY if name == BASE else BASE
        if name == BASE:
            question = "Is the base better than the query alone?"
        systems.ask(before, name, question, baseline=True)
        if name == BASE or has_own_llm(found, name):
            add(plain(name), f"{title} (base retriever)", name, PLAIN)
            before = QUERY if name == BASE else plain(BASE)
            systems.ask(before, plain(name), f"{question} (Base retriever.)", baseline=True)
    return systems.report(pipeline, "compare the lines")


def titles(lines: tuple[AblationLine, ...]) -> dict[str, str]:
    """Return the titles of all rows by name."""
    return {BASE: "base"} | {line.name: line.shown for line in lines}


def plain(line: str) -> str:
    """Name the system of a line's LLM with the base retriever."""
    return f"{line}_base-retriever"


def has_own_llm(found: Lines, line: str) -> bool:
    """Tell whether a line changes what the base retriever reaches."""
    base = {seed: each for (name, seed), each in found.outcomes.items() if name == BASE}
    return any(
        outcome.measured[PLAIN].key != base[seed].measured[PLAIN].key
        for (name, seed), outcome in found.outcomes.items()
        if name == line
    )


def _splits(found: Lines) -> dict[str, Evaluation]:
    """Return what is measured with each seed."""
    return {
        f"seed-{seed}": outcome.data.evaluations[outcome.data.reported]
        for (name, seed), outcome in found.outcomes.items()
        if name == BASE
    }


def lay_out(
    pipeline: Pipeline, lines: tuple[AblationLine, ...], found: Lines, report: Artifact
) -> Artifact:
    """Make the table: what every line reaches, and what it has cost beyond those above it."""
    costs = added_costs(pipeline.open(), dict(_artifacts(pipeline, lines)))
    rows = [
        TableRow(
            name=name,
            title=title,
            changes=next((dict(line.set) for line in lines if line.name == name), {}),
            plain=plain(name) if name == BASE or has_own_llm(found, name) else plain(BASE),
            error=found.failed.get(name, ""),
            **costs[name]._asdict(),
        )
        for name, title in titles(lines).items()
    ]
    options = AblationOptions(rows=tuple(rows), query=QUERY)
    return pipeline.step("ablation", {"comparison": report}, "lay out the table", options=options)


def _artifacts(
    pipeline: Pipeline, lines: tuple[AblationLine, ...]
) -> Iterator[tuple[str, list[Artifact]]]:
    """Yield for each line what it has made or found, with all seeds."""
    for name in titles(lines):
        yield (
            name,
            [
                step.artifact
                for step in pipeline.steps
                if step.id.name.partition("/")[0].partition(", ")[2] == name
            ],
        )


def record_ablation(
    pipeline: Pipeline, started: Started, report: Artifact, table: Artifact
) -> AblationSummary:
    """Write the record of this run into the store, which keeps what it made from `expandr gc`."""
    summary = AblationSummary(
        **end_record(pipeline, started, report), options=pipeline.options, table=table
    )
    write_record(pipeline, summary, "ablate")
    return summary
