"""One stage alone, on artifacts of earlier runs, to repeat it with other options."""

from typing import Literal

from prefect import flow
from pydantic import Field

from expandr_core.errors import DataError
from expandr_core.evaluation.comparison import MeasuredDataset
from expandr_core.options.base import Options
from expandr_core.options.loop import JointLoopOptions
from expandr_core.store.artifacts import Artifact
from expandr_core.store.run_records import Step
from tasks.align import align
from tasks.comparison import Comparison, Measured
from tasks.data import Evaluation, import_queries, prepare_data
from tasks.distil import distil
from tasks.expand import write_answers, write_candidates, write_expansions, write_greedy
from tasks.imports import import_expansions
from tasks.models import import_models, with_adapter
from tasks.pipeline import Pipeline
from tasks.placement import Placement
from tasks.preferences import (
    audit_pairs,
    choose_pairs,
    import_pairs,
    judge_by,
    ranks_in_corpus,
    reward,
)
from tasks.references import measure_references
from tasks.retriever import train_retriever

Stage = Literal[
    "prepare", "import_pairs", "import_expansions", "expansions", "greedy", "candidates", "answers",
    "preferences", "dpo", "retriever", "distil", "evaluate",
]  # fmt: skip
NEEDED = {
    "prepare": (),
    "import_pairs": ("llm",),
    "import_expansions": ("queries",),
    **dict.fromkeys(("expansions", "greedy", "candidates", "answers"), ("llm", "queries")),
    "preferences": ("candidates", "queries"),  # and what the reward needs
    "dpo": ("llm", "pairs"),
    "retriever": ("retriever", "queries"),
    "distil": ("llm", "retriever", "queries"),
    "evaluate": ("retriever", "corpus", "queries", "qrels"),
}
OPTIONAL = {
    "preferences": ("answers", "corpus"),
    "retriever": ("corpus", "expansions"),
    "evaluate": ("expansions",),
}


class Inputs(Options):
    """Artifacts by KEY or KEY/FILE, as `expandr show RUN` lists them; each stage needs some of them."""

    llm: str = Field(
        default="", description="Language model, to expand, or for import_pairs, dpo and distil."
    )
    retriever: str = Field(
        default="",
        description="Retriever, for preferences, evaluate, retriever and distil (to start from).",
    )
    queries: str = Field(
        default="",
        description="Queries, such as prepare-1f3a/test_queries.parquet; for preferences, retriever and "
        "distil those with positives, such as prepare-1f3a/preference.parquet; for import_expansions "
        "prepare-1f3a/pseudo_docs.parquet.",
    )
    qrels: str = Field(
        default="", description="For evaluate, such as prepare-1f3a/test_qrels.parquet."
    )
    corpus: str = Field(
        default="",
        description="Passages, such as prepare-1f3a/corpus.parquet, for evaluate, for retriever to "
        "mine in (empty if the queries bring hard negatives), and for preferences to rank positives in.",
    )
    expansions: str = Field(
        default="", description="Of the queries, for retriever (empty: the control) and evaluate."
    )
    candidates: str = Field(default="", description="For preferences.")
    answers: str = Field(default="", description="For preferences, of the same queries.")
    pairs: str = Field(default="", description="Preference pairs, for dpo.")


DEFAULTS, NOTHING, HERE = JointLoopOptions(), Inputs(), Placement()


@flow(name="single-stage", flow_run_name="{stage}")
def single_stage(
    stage: Stage,
    options: JointLoopOptions = DEFAULTS,
    inputs: Inputs = NOTHING,
    placement: Placement = HERE,
    store: str = "store",
) -> list[Step]:
    """Run one stage on artifacts of earlier runs.

    Args:
        stage: What to make. The LLM writes expansions, greedy expansions, candidates or answers;
            "preferences" rewards the candidates, chooses pairs and audits them. "import_pairs" reads
            `data.pairs`; "import_expansions" reads what "prepare" found in the training triples.
        options: The options of every stage; those of other stages do not matter.
        inputs: The artifacts to start from.
        placement: Where each kind of stage runs.
        store: Folder or s3:// URL that keeps every artifact.
    """
    pipeline = Pipeline(store, options, placement)
    found = find_inputs(pipeline, stage, inputs)
    match stage:
        case "prepare":
            prepare_data(pipeline)
        case "import_pairs":
            import_pairs(pipeline, found["llm"])
        case "import_expansions":
            import_expansions(pipeline, found["queries"])
        case "expansions" | "greedy" | "candidates" | "answers":
            write_texts(pipeline, stage, found["queries"], found["llm"])
        case "preferences":
            imported = import_models(pipeline, {"reward_encoder"}).get("reward_encoder")
            judge = judge_by(pipeline, imported or found["retriever"], found.get("corpus"))
            written = (found["candidates"], found.get("answers"), found["queries"])
            rewards = reward(pipeline, *written, judge)
            audit_pairs(pipeline, rewards, choose_pairs(pipeline, rewards))
        case "dpo":
            align(pipeline, found["llm"], found["pairs"])
        case "retriever":
            start = found["retriever"]
            corpus, expansions = found.get("corpus"), found.get("expansions")
            train_retriever(pipeline, found["queries"], corpus, expansions, start, start)
        case "distil":
            examples, unlabelled = found["queries"], import_queries(pipeline, None)
            distil(pipeline, examples, unlabelled, found["llm"], found["retriever"])
        case "evaluate":
            evaluate(pipeline, found)
    return list(pipeline.steps)


def write_texts(pipeline: Pipeline, stage: Stage, queries: Artifact, llm: Artifact) -> None:
    """Let the language model write what the stage says."""
    match stage:
        case "greedy":
            write_greedy(pipeline, queries, llm, "expand greedily", "")
        case "candidates":
            write_candidates(pipeline, queries, llm)
        case "answers":
            write_answers(pipeline, queries, llm)
        case _:
            samples = pipeline.options.training.expansions_per_query
            write_expansions(pipeline, queries, llm, "expand", "", samples)


def find_inputs(pipeline: Pipeline, stage: Stage, inputs: Inputs) -> dict[str, Artifact]:
    """Find the artifacts that a stage starts from, by role; `llm.adapter` goes on the LLM.

    Raises:
        DataError: if one is missing, or given to a stage that does not read it.
    """
    given = {role: key for role in Inputs.model_fields if (key := getattr(inputs, role))}
    needed = [*NEEDED[stage], *(reward_inputs(pipeline) if stage == "preferences" else ())]
    missing = [role for role in needed if role not in given]
    unread = sorted(set(given) - {*needed, *OPTIONAL.get(stage, ())})
    if missing:
        raise DataError(
            f"{stage} needs {' and '.join(f'inputs.{role}' for role in missing)}: give the key of an "
            "artifact; `expandr show RUN` lists those of a run"
        )
    if unread:
        raise DataError(f"{stage} does not read inputs.{unread[0]}; leave it empty")
    found = {role: pipeline.find(key) for role, key in given.items()}
    if "llm" in found:
        found["llm"] = with_adapter(pipeline, found["llm"])
    return found


def reward_inputs(pipeline: Pipeline) -> list[str]:
    """Return the inputs that the reward of the options needs, beside candidates and queries."""
    options = pipeline.options
    needed = {
        "answers": options.preferences.self_weight > 0,
        "retriever": options.preferences.reward_encoder.model == "current",
        "corpus": ranks_in_corpus(options),
    }
    return [role for role, asked in needed.items() if asked]


def evaluate(pipeline: Pipeline, found: dict[str, Artifact]) -> None:
    """Measure a retriever with and without expansions, beside BM25, and publish the report."""
    evaluation = Evaluation(found["queries"], found["qrels"], found["corpus"])
    systems = Comparison([Measured(MeasuredDataset(name="alone"), {"": evaluation})])
    measure_references(pipeline, systems)
    systems.dense(pipeline, "query", "query only", found["retriever"])
    if "expansions" in found:
        written = {"alone": [found["expansions"]]}
        systems.dense(pipeline, "expanded", "with expansion", found["retriever"], written)
        systems.ask("query", "expanded", "Does the expansion help?", baseline=True)
    pipeline.publish(systems.report(pipeline), "report.md", "evaluation-report")
