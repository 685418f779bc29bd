"""Which language models and retrievers a suite measures together."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from expandr_core.errors import DataError
from expandr_core.options.base import Options
from expandr_core.options.loop import JointLoopOptions
from expandr_core.store.artifacts import Artifact
from flows.champions import chosen_run
from flows.run_record import RunRecord, find_run, loop_run
from tasks.models import import_models, with_adapter
from tasks.pipeline import Pipeline

EXAMPLES = ("preference.parquet", "retriever.parquet")
DEV = "dev_queries.parquet"


@dataclass(frozen=True)
class ModelPair:
    """A language model and a retriever that are measured together.

    Attributes:
        title: as the report shows it.
        options: how the retriever is used and the LLM writes; of a run's models, those of the run.
        training: files of examples that the models were trained on, as far as they are known.
        gate: tells which queries are expanded, if the run learned it.
        run: whose best models these are; empty if options or keys name them.
        dev: queries by which that run chose its round and its gate.
    """

    title: str
    llm: Artifact
    retriever: Artifact
    options: JointLoopOptions
    training: tuple[Artifact, ...]
    gate: Artifact | None = None
    run: str = ""
    dev: tuple[Artifact, ...] = ()


class MeasuredModels(Options):
    """Models that runs or keys name; without any, those of the options."""

    runs: tuple[str, ...] = Field(
        default=(),
        description="Runs of the joint loop whose best models are measured: aliases such as champion, "
        "names, their beginnings, or latest. Empty: the models of the options, and the champion if they "
        "name none.",
    )
    llm: str = Field(
        default="", description="Key of a language model; empty for the one in the options."
    )
    retriever: str = Field(
        default="", description="Key of a retriever; empty for the one in the options."
    )
    training: tuple[str, ...] = Field(
        default=(),
        description="Keys of prepared training data to audit for leakage, such as prepare-1f3a; that "
        "of the runs is known.",
    )
    gate_on: str = Field(
        default="",
        description="Folder in BEIR layout on whose dev queries (qrels/dev.tsv) the models learn a "
        "gate; empty for the gates of the runs.",
    )

    @classmethod
    def of(cls, runs: list[str], inputs: list[str], gate_on: str = "") -> "MeasuredModels":
        """Read what the command line names: runs, and inputs such as "llm=KEY"; the last one counts.

        Raises:
            DataError: if there is no such input.
        """
        named: dict[str, list[str]] = {"llm": [""], "retriever": [""], "training": []}
        for name, _, value in (text.partition("=") for text in inputs):
            if name not in named:
                raise DataError(f"--input {name}: only {', '.join(named)} can be given")
            named[name].append(value)
        llm, retriever = named["llm"][-1], named["retriever"][-1]
        return cls(
            runs=tuple(runs),
            llm=llm,
            retriever=retriever,
            training=tuple(named["training"]),
            gate_on=gate_on,
        )


def find_pairs(
    pipeline: Pipeline, wanted: MeasuredModels, say: Callable[[str], None]
) -> list[ModelPair]:
    """Find or import the models: those that are named, then the best of each run.

    Args:
        pipeline: of the suite.
        wanted: the models.
        say: is told which run's models are measured if neither options nor `wanted` name any.

    Raises:
        DataError: if there is no such run, or nothing to measure.
    """
    training = tuple(file for key in wanted.training for file in _examples(pipeline.find(key)))
    pairs = _named_models(pipeline, wanted, training, say)
    for name in wanted.runs:
        pairs.append(_best_models(loop_run(pipeline.open(), name), training))
    for pair in pairs if not wanted.gate_on else ():
        _check_gate(pair, pipeline.options.evaluate.similarity)
    return pairs


def _check_gate(pair: ModelPair, similarity: Literal["retriever", "cosine", "dot"]) -> None:
    """Refuse a gate that was learned on other scores than it would see.

    Raises:
        DataError: if vectors are to be compared otherwise.
    """
    learned_by = pair.options.measured_retriever
    if pair.gate and learned_by.comparing_by(similarity) != learned_by:
        raise DataError(
            f"the gate of {pair.run} was learned on scores by another evaluate.similarity than "
            f"{similarity!r}; leave that option out, or learn a gate on dev queries (--gate-on)"
        )


def _named_models(
    pipeline: Pipeline,
    wanted: MeasuredModels,
    training: tuple[Artifact, ...],
    say: Callable[[str], None],
) -> list[ModelPair]:
    """Return the pair that options or keys name; none if runs are measured and one is missing."""
    options = pipeline.options
    names = {
        "llm": wanted.llm or options.llm.model,
        "retriever": wanted.retriever or options.retriever.model,
    }
    unnamed = [role for role, name in names.items() if name == "tiny"]
    if unnamed and wanted.runs:
        return []
    if len(unnamed) == len(names) and find_run(store := pipeline.open(), "latest"):
        run = chosen_run(store, "", say)
        return [_best_models(run, training)]
    if unnamed:
        raise DataError(
            f"{unnamed[0]}.model is 'tiny', which is built from a collection's text; name a model, give "
            "the key of one, or name a run whose models are measured (--run, `models.runs`)"
        )
    found = {role: pipeline.find(key) for role in names if (key := getattr(wanted, role))}
    if "llm" in found:
        found["llm"] = with_adapter(pipeline, found["llm"])
    found |= import_models(pipeline, set(names) - set(found))
    adapter = f" + {Path(options.llm.adapter).name}" if options.llm.adapter else ""
    title = f"{Path(names['llm']).name}{adapter} and {Path(names['retriever']).name}"
    changed = {
        role: getattr(options, role).model_copy(update={"model": names[role]}) for role in names
    }
    options = options.model_copy(update=changed)  # what a key names is no model of the options
    return [ModelPair(title, found["llm"], found["retriever"], options, training)]


def _best_models(run: RunRecord, training: tuple[Artifact, ...]) -> ModelPair:
    prepared = [step.artifact for step in run.steps if step.id.stage == "prepare"]
    known = [file for artifact in prepared for file in _examples(artifact)]
    files = {file.digest: file for file in [*known, *training]}
    return ModelPair(
        f"{run.name}, round {run.best_round}",
        run.models["llm"],
        run.models["retriever"],
        run.options,
        tuple(files.values()),
        run.models.get("gate"),
        run.name,
        tuple(each.at(DEV) for each in prepared if DEV in each.files),
    )


def _examples(artifact: Artifact) -> list[Artifact]:
    """Return the files with training examples."""
    if artifact.path:
        return [artifact]
    files = [artifact.at(name) for name in EXAMPLES if name in artifact.files]
    if not files:
        raise DataError(f"{artifact.key} holds no training examples; name a prepare artifact")
    return files
