"""Learn the gate on dev, and measure what it makes of two systems: the query alone, and expanded."""

from dataclasses import dataclass

from expandr_core.evaluation.comparison import System
from expandr_core.evaluation.render import counted
from expandr_core.retrieval.gate import Gate, read_gate
from expandr_core.stages.evaluate_runs import EXPANDED, SAVED, SEARCHED, EvaluateRunsOptions
from expandr_core.stages.gate import GateStageOptions
from expandr_core.store.artifacts import Artifact
from tasks.comparison import Comparison, Measured
from tasks.pipeline import Pipeline


@dataclass(frozen=True)
class Both:
    """Two systems of the same retriever, without expansions and with, and how variants are named.

    Attributes:
        alone: name of the system that searches with the query alone.
        expanded: name of the one that searches with expansions, always.
        retriever: of both.
        baseline: name of the system that tables compare the variants with.
        suffix: of the variants' names.
    """

    alone: str
    expanded: str
    retriever: Artifact
    baseline: str
    suffix: str = ""


def learn_gate_on(
    pipeline: Pipeline, dev: Measured, llm: Artifact, retriever: Artifact, name: str, title: str
) -> Artifact:
    """Expand dev queries, and learn the gate of a language model and a retriever on them.

    Args:
        pipeline: of the run.
        dev: the queries.
        llm: writes.
        retriever: searches.
        name: of the models, if several are measured.
        title: of the models.
    """
    systems = Comparison([dev], purpose="gate/")
    written = systems.expand(pipeline, llm, f"sampled{name}", title)
    systems.dense(pipeline, f"sampled{name}", f"{title}, to learn the gate", retriever, written)
    return learn_gate(pipeline, systems, f"sampled{name}", retriever, name)


def learn_gate(
    pipeline: Pipeline, dev: Comparison, system: str, retriever: Artifact, name: str = ""
) -> Artifact:
    """Learn the weight of the expansions, and the gate, on the dev queries.

    Args:
        pipeline: of the run.
        dev: what is measured on dev, and nothing else.
        system: that searches with the expansions there.
        retriever: of that system.
        name: of the step.
    """
    [(key, evaluation)] = dev.evaluations.items()
    [written] = dev.expansions[system][key]
    options = pipeline.options
    inputs = {"retriever": retriever, "expansions": written, **evaluation.judged}
    inputs["embeddings"] = dev.vectors[key, retriever.key, options.measured_retriever.encoding]
    chosen = GateStageOptions.of(options, evaluation.identical_ids)
    return pipeline.step("gate", inputs, f"learn the gate on dev{name}", options=chosen, name=name)


def measure_variants(
    pipeline: Pipeline, systems: Comparison, both: Both, gate: Artifact | None
) -> None:
    """Measure what the options ask for: with a gate, if there is one, and with fused ranks."""
    if gate and pipeline.options.gate.mode != "off":
        _measure_gate(pipeline, systems, both, gate)
    if pipeline.options.evaluate.fusion == "rrf":
        _measure_fused_ranks(pipeline, systems, both)


def _measure_gate(pipeline: Pipeline, systems: Comparison, both: Both, gate: Artifact) -> None:
    """Measure expansions with the learned weight and, unless it is for all queries, gated ones."""
    learned, gated = f"learned{both.suffix}", f"gated{both.suffix}"
    title, found = systems.systems[both.expanded].title, _read(pipeline, gate)
    options = pipeline.options.retriever
    fusion = options.fusion.model_copy(update={"expansion_weight": found.alpha})
    systems.dense(
        pipeline.changed(retriever=options.model_copy(update={"fusion": fusion})),
        learned,
        f"{title}, learned weight {found.alpha:g}",
        both.retriever,
        systems.expansions[both.expanded] if found.alpha else None,
    )
    _ask(systems, both, learned, "the learned weight")
    if found.mode == "global":
        return
    expanded = learned if found.alpha else both.expanded
    name = f"{title}, gated {found.mode} generation"
    made = _together(pipeline, systems, both, expanded, System(name=gated, title=name), gate)
    _ask(systems, both, gated, "the gate")
    if both.alone != both.baseline:
        systems.ask(both.alone, gated, "Is the gate better than the same retriever's query alone?")
    expands, queries, saved = (
        sum(each.counts.get(count, 0) for each in made) for count in (EXPANDED, SEARCHED, SAVED)
    )
    seeds = systems.systems[gated].seeds
    asked = counted(queries / seeds, "query", "queries")
    asked += f" with each of {seeds} seeds" if seeds > 1 else ""
    systems.notes.append(
        f"Of {asked}, {name} expands {expands:.0f} and saves {counted(saved, 'call')} of the LLM."
        if expands
        else f"Of {asked}, {name} expands none, so it equals {systems.systems[both.alone].title}."
    )


def _measure_fused_ranks(pipeline: Pipeline, systems: Comparison, both: Both) -> None:
    """Measure the ranks of both systems, fused."""
    name, title = f"rrf{both.suffix}", f"{systems.systems[both.expanded].title}, ranks fused"
    _together(pipeline, systems, both, both.expanded, System(name=name, title=title))
    _ask(systems, both, name, "fusing ranks")


def _ask(systems: Comparison, both: Both, name: str, what: str) -> None:
    question = f"Is {what} better than the query alone?"
    systems.ask(both.baseline, name, question, baseline=True)
    systems.ask(both.expanded, name, f"Is {what} better than always expanding?")


def _read(pipeline: Pipeline, gate: Artifact) -> Gate:
    """Read a gate; a dry run, which has none, takes one of the run's weight."""
    options = pipeline.options
    weight, mode = options.retriever.fusion.expansion_weight, options.gate.mode
    likely = Gate("before" if mode == "off" else mode, weight, weight, "learned")
    return pipeline.ask(lambda store: read_gate(store.local(gate)), predicted=likely)


def _together(
    pipeline: Pipeline,
    systems: Comparison,
    both: Both,
    expanded: str,
    system: System,
    gate: Artifact | None = None,
) -> list[Artifact]:
    """Measure two systems together; return what was made, by dataset and seed."""
    options, made = pipeline.options, []
    chosen = EvaluateRunsOptions(
        how="gate" if gate else "rrf",
        encoding=options.measured_retriever.encoding,
        depth=options.evaluate.depth,
    )
    reads_texts = gate and _read(pipeline, gate).mode == "after"
    written_by = systems.expansions[both.expanded]
    for step, role, key, written in systems.cells(pipeline, system.name, system.title, written_by):
        seed = role.rpartition("/")[2]
        inputs = {
            "alone": systems.inputs[f"measured/{key}/{both.alone}/0"],
            "expanded": systems.inputs[f"measured/{key}/{expanded}/{seed}"],
            "gate": gate,
            "retriever": both.retriever if reads_texts else None,
            "expansions": written if reads_texts else None,
            **systems.evaluations[key].judged,
        }
        cell = systems.purpose + role.removeprefix("measured/")
        artifact = pipeline.step("evaluate_runs", inputs, step, options=chosen, name=cell)
        systems.inputs[role] = artifact
        made.append(artifact)
    return made
