"""Encode the corpus, mine hard negatives, and train the retriever."""

from expandr_core.options.loop import JointLoopOptions
from expandr_core.options.retriever import RetrieverOptions
from expandr_core.stages import encode as encode_stage
from expandr_core.stages import mine as mine_stage
from expandr_core.stages import train_retriever as train_stage
from expandr_core.store.artifacts import Artifact
from tasks.stage import Workspace


def encode_corpus(
    work: Workspace, corpus: Artifact, retriever: Artifact, options: RetrieverOptions, which: str
) -> Artifact:
    """Encode every passage."""
    return work.make(
        f"encode the corpus, {which}",
        "encode",
        encode_stage.OPTIONS.of(options),
        {"corpus": corpus, "retriever": retriever},
    )


def train_retriever(
    work: Workspace,
    examples: Artifact,
    corpus: Artifact | None,
    start: Artifact,
    miner: Artifact,
    expansions: Artifact | None,
    options: JointLoopOptions,
    title: str,
) -> Artifact:
    """Train on expanded queries, or, without expansions, the control that the paper calls SFT.

    Args:
        work: where artifacts are kept.
        examples: training queries with positives, and perhaps given hard negatives.
        corpus: the collection that hard negatives are mined in; None if there is none.
        start: the retriever whose weights training starts from.
        miner: the current retriever, which mines.
        expansions: of the training queries, or None.
        options: of the loop.
        title: names the step.
    """
    negatives = None
    if corpus and options.training.hard_negatives:
        vectors = encode_corpus(work, corpus, miner, options.retriever, f"to mine ({title})")
        negatives = work.make(
            f"mine hard negatives ({title})",
            "mine",
            mine_stage.OPTIONS.of(options),
            {
                "examples": examples,
                "expansions": expansions,
                "retriever": miner,
                "embeddings": vectors,
                "corpus": corpus,
            },
        )
    return work.make(
        title,
        "train_retriever",
        train_stage.OPTIONS.of(options),
        {
            "retriever": start,
            "examples": examples,
            "expansions": expansions,
            "negatives": negatives,
        },
    )
