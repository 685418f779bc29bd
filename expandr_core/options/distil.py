"""The distilled query encoder: the vectors of expanded queries, learned by the query's side."""

from typing import Literal

from pydantic import Field

from expandr_core.options.base import Options, Positive
from expandr_core.options.training import RetrieverTrainingOptions

DEMO = "demo"
DistilLoss = Literal["cosine", "mse"]


class DistilOptions(Options):
    """A query encoder that has learned the vectors of expanded queries, so that search needs no LLM."""

    enabled: bool = Field(
        default=False,
        description="Distil the models that the loop keeps into a query encoder, and report it. "
        "Passages keep their encoder and their vectors.",
    )
    queries: str = Field(
        default="",
        description="File or s3:// URL of queries without judgements to learn from too, one a line, or "
        "*.jsonl with a field text, or 'demo' for the log of the built-in world. The LLM expands them.",
    )
    samples: int = Field(
        default=0,
        ge=0,
        description="Expansions per query whose mean the student imitates; 0: as many as the retriever "
        "is trained on.",
    )
    expansion_weight: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of the expansions in the vector that is imitated, such as one that the gate "
        "has learned; empty: that of the search (retriever.fusion.expansion_weight).",
    )
    loss: DistilLoss = Field(
        default="cosine",
        description="Distance of the student's vector from the expanded query's: 1 minus the cosine, or "
        "the squared distance.",
    )
    contrastive_weight: float = Field(
        default=0.1,
        ge=0,
        description="Weight of the retriever's own contrastive loss on the queries with positives, "
        "beside the distance; 0: the distance alone.",
    )
    epochs: Positive = Field(default=10, description="Passes over the queries.")
    learning_rate: float = Field(
        default=2e-5, gt=0, description="Peak learning rate of AdamW, linear decay."
    )
    batch_size: int = Field(default=64, ge=2, description="Queries per step over all processes.")

    def training(self, retriever: RetrieverTrainingOptions) -> RetrieverTrainingOptions:
        """Return how the student is trained: as the retriever is, but for what is set here."""
        return RetrieverTrainingOptions(
            learning_rate=self.learning_rate,
            epochs=self.epochs,
            batch_size=self.batch_size,
            warmup_share=retriever.warmup_share,
            contrastive_temperature=retriever.contrastive_temperature,
            hard_negatives=retriever.hard_negatives,
            precision=retriever.precision,
            mini_batch_size=retriever.mini_batch_size,
            processes=retriever.processes,
            checkpoint_steps=retriever.checkpoint_steps,
        )
