"""Training the retriever."""

from typing import Literal

from pydantic import Field

from expandr_core.options.base import Options, Positive, runtime


class ContrastiveTrainingOptions(Options):
    """Contrastive training of the retriever on expanded queries."""

    learning_rate: float = Field(
        default=1e-5, gt=0, description="Peak learning rate of AdamW, linear decay."
    )
    epochs: Positive = Field(default=3, description="Passes over the training examples.")
    batch_size: int = Field(
        default=64,
        ge=2,
        description="Queries per step, of all processes together; the others' passages are negatives.",
    )
    batches: Literal["mixed", "by_source"] = Field(
        default="mixed",
        description="'by_source' fills a batch from one source (a file of triples), whose passages "
        "are harder to tell apart.",
    )
    warmup_share: float = Field(
        default=0.1, ge=0, lt=1, description="Share of the steps until the peak."
    )
    hard_negatives: int = Field(default=1, ge=0, description="Hard negatives per query and epoch.")
    expansions_per_query: Positive = Field(
        default=1, description="Expansions written per training query."
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="bfloat16 is about twice as quick where the processor has it, and very slow "
        "where it does not; weights and loss stay in float32.",
    )
    dev_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the queries that is held out to choose the best step; 0 trains on all "
        "and keeps the last.",
    )
    evaluation_steps: Positive = Field(
        default=100, description="Steps between two measurements on the held-out queries."
    )
    mini_batch_size: Positive = runtime(
        256,
        description="Texts of a process whose activations are kept at once; what exceeds them is "
        "embedded twice. Lower it if the memory does not suffice.",
    )
    processes: Positive = runtime(
        1, description="Processes that train together on one machine: GPUs, or shares of a CPU."
    )
    checkpoint_steps: Positive = runtime(200, description="Steps between checkpoints.")


class RetrieverTrainingOptions(ContrastiveTrainingOptions):
    """Contrastive training of the retriever on expanded queries, and its hard negatives."""

    mining_depth: Positive = Field(
        default=30,
        description="If none are given, hard negatives are drawn from this many first passages.",
    )
    mining_margin: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Passages that are no less similar to the query than its positive by this share "
        "may be relevant and are left out (NV-Retriever: 0.05); 0 keeps all.",
    )
