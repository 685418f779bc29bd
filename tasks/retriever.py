"""Encode the corpus, mine hard negatives, and train the retriever."""

from expandr_core.stages import encode, mine
from expandr_core.stages import train_retriever as train
from expandr_core.stages.prepare import WITHOUT_NEGATIVES
from expandr_core.store.artifacts import Artifact
from expandr_core.store.manifests import DamagedArtifact
from tasks.pipeline import Pipeline


def encode_corpus(
    pipeline: Pipeline, corpus: Artifact, retriever: Artifact, title: str, name: str
) -> Artifact:
    """Encode every passage.

    Args:
        pipeline: of the run.
        corpus: the passages.
        retriever: encodes them.
        title: what for.
        name: of the step.
    """
    return pipeline.step(
        "encode",
        {"corpus": corpus, "retriever": retriever},
        f"encode the corpus, {title}",
        options=encode.OPTIONS.of(pipeline.options.retriever),
        name=name,
    )


def train_retriever(
    pipeline: Pipeline,
    examples: Artifact,
    corpus: Artifact | None,
    expansions: Artifact | None,
    start: Artifact,
    miner: Artifact,
) -> Artifact:
    """Train on expanded queries, or, without expansions, the control that the paper calls SFT.

    Args:
        pipeline: of the run.
        examples: training queries with positives, and perhaps given hard negatives.
        corpus: the collection that hard negatives are mined in; None if there is none.
        expansions: of the training queries, or None.
        start: the retriever whose weights training starts from.
        miner: the current retriever, which mines.
    """
    options = pipeline.options if expansions else pipeline.options.without_expansions
    name, trained = ("", "retriever") if expansions else ("control", "control")
    negatives = None
    if corpus and options.training.hard_negatives and _without_negatives(pipeline, examples):
        vectors = encode_corpus(
            pipeline, corpus, miner, f"to mine for the {trained}", f"mine/{name}"
        )
        negatives = pipeline.step(
            "mine",
            {
                "examples": examples,
                "expansions": expansions,
                "retriever": miner,
                "embeddings": vectors,
                "corpus": corpus,
            },
            f"mine hard negatives for the {trained}",
            options=mine.OPTIONS.of(options),
            name=name,
        )
    inputs = {
        "retriever": start,
        "examples": examples,
        "expansions": expansions,
        "negatives": negatives,
    }
    title, training = f"train the {trained}", train.OPTIONS.of(options)
    return pipeline.step("train_retriever", inputs, title, options=training, name=name)


def _without_negatives(pipeline: Pipeline, examples: Artifact) -> bool:
    """Tell whether an example may lack hard negatives of its own: only such a one gets mined ones."""
    try:
        counts = pipeline.open().manifest(examples.key)["counts"]
    except (FileNotFoundError, DamagedArtifact):  # they are only predicted
        return True
    return counts.get(WITHOUT_NEGATIVES, 1) > 0
