"""Encode the corpus, mine hard negatives, and train the retriever."""

from expandr_core.options.retriever import RetrieverOptions
from expandr_core.options.training import RetrieverTrainingOptions
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
        encode_stage.OPTIONS(encoding=options.encoding, vector_type=options.vector_type),
        {"corpus": corpus, "retriever": retriever},
    )


def train_retriever(
    work: Workspace,
    examples: Artifact,
    corpus: Artifact | None,
    start: Artifact,
    miner: Artifact,
    expansions: Artifact | None,
    options: tuple[RetrieverOptions, RetrieverTrainingOptions],
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
        options: of the retriever and of its training.
        title: names the step.
    """
    retriever, training = options
    negatives = None
    if corpus and training.hard_negatives:
        vectors = encode_corpus(work, corpus, miner, retriever, f"to mine ({title})")
        negatives = work.make(
            f"mine hard negatives ({title})",
            "mine",
            mine_stage.OPTIONS(
                mining_depth=training.mining_depth,
                mining_margin=training.mining_margin,
                expansions_per_query=training.expansions_per_query,
                encoding=retriever.encoding,
                expansion_weight=retriever.expansion_weight,
                search_memory_gb=retriever.search_memory_gb,
            ),
            {
                "examples": examples,
                "expansions": expansions,
                "retriever": miner,
                "embeddings": vectors,
                "corpus": corpus,
            },
        )
    resolved = train_stage.OPTIONS(
        **training.model_dump(exclude={"mining_depth", "mining_margin"}),
        encoding=retriever.encoding,
        expansion_weight=retriever.expansion_weight,
        contrastive_temperature=retriever.contrastive_temperature,
    )
    return work.make(
        title,
        "train_retriever",
        resolved,
        {
            "retriever": start,
            "examples": examples,
            "expansions": expansions,
            "negatives": negatives,
        },
    )
