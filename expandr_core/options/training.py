"""Training: DPO of the language model, and contrastive training of the retriever."""

from typing import Literal

from pydantic import Field, model_validator

from expandr_core.options.base import Options, Positive, runtime

ALL_LINEAR = "all-linear"


class LoRAOptions(Options):
    """The adapter that DPO trains (Hu et al., 2022)."""

    rank: Positive = Field(default=8, description="Rank of the adapter.")
    alpha: Positive = Field(default=32, description="Its scale is alpha / rank.")
    targets: tuple[str, ...] = Field(
        default=("q_proj", "v_proj"),
        min_length=1,
        description="Linear layers that are adapted, by the ends of their names; 'all-linear': all but "
        "the head and a mixture's experts.",
    )

    @model_validator(mode="after")
    def _all_or_some(self) -> "LoRAOptions":
        if ALL_LINEAR in self.targets and len(self.targets) > 1:
            raise ValueError(
                f"targets: {ALL_LINEAR!r} stands alone; remove it, or all the other names"
            )
        return self


class DPOTrainingOptions(Options):
    """Direct preference optimisation of a LoRA adapter."""

    learning_rate: float = Field(
        default=2e-5, gt=0, description="Peak learning rate of AdamW, linear decay."
    )
    epochs: float = Field(default=2, gt=0, description="Passes over the pairs.")
    batch_size: Positive = Field(default=16, description="Pairs per optimiser step.")
    beta: float = Field(
        default=0.1, gt=0, description="Strength of the pull towards the reference model."
    )
    lora: LoRAOptions = Field(default=LoRAOptions(), title="The adapter")
    warmup_steps: int = Field(default=0, ge=0, description="Steps until the peak learning rate.")
    max_grad_norm: float = Field(
        default=10.0, gt=0, description="Gradients are clipped to this norm."
    )
    max_tokens: int = Field(
        default=612,
        ge=16,
        description="Longest prompt plus text; longer texts are cut at the end, prompts never.",
    )
    evaluation_steps: Positive = Field(
        default=100,
        description="Steps between two measurements on the pairs of the dev part, and their "
        "checkpoints; the adapter with the lowest loss is kept. Without a dev part, the last.",
    )
    device_batch_size: Positive = runtime(
        16, description="Pairs per process at once; the rest accumulates."
    )
    processes: Positive = runtime(
        1, description="Processes that train together on one machine: GPUs, or shares of a CPU."
    )
    zero: Literal["none", "2", "3"] = runtime(
        "none",
        description="DeepSpeed's ZeRO: the processes share the optimiser's state and the gradients (2), "
        "or the model's weights too (3), for a model that no GPU holds alone.",
    )
    gradient_checkpointing: bool = runtime(
        False, description="Takes less memory, and about a third more time."
    )
    checkpoint_steps: Positive = runtime(
        50, description="Steps between checkpoints, if there is no dev part."
    )
    merge: bool = runtime(
        True,
        description="Write the model with the adapter folded in. Otherwise the adapter is kept apart, "
        "and used so wherever the model writes: a round then writes megabytes, not the model.",
    )


class MiningOptions(Options):
    """Hard negatives from the collection, for training examples that bring none."""

    depth: Positive = Field(
        default=30, description="Passages per query, from the first, that are candidates."
    )
    margin: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Passages whose similarity to the query falls short of its positive's by less than "
        "this share may be relevant and are left out (NV-Retriever: 0.05); 0 keeps all.",
    )


class RetrieverTrainingOptions(Options):
    """Contrastive training of the retriever on expanded queries."""

    learning_rate: float = Field(
        default=1e-5, gt=0, description="Peak learning rate of AdamW, linear decay."
    )
    epochs: Positive = Field(default=3, description="Passes over the training examples.")
    batch_size: int = Field(
        default=64,
        ge=2,
        description="Queries per step over all processes; their passages are one another's negatives.",
    )
    batches: Literal["mixed", "by_source"] = Field(
        default="mixed",
        description="'by_source' fills a batch from one source (a file of triples), whose passages "
        "are harder to tell apart.",
    )
    warmup_share: float = Field(
        default=0.1, ge=0, lt=1, description="Share of the steps until the peak learning rate."
    )
    contrastive_temperature: float = Field(
        default=0.02, gt=0, description="The loss divides similarities by it."
    )
    hard_negatives: int = Field(default=1, ge=0, description="Hard negatives per query and epoch.")
    expansions_per_query: Positive = Field(
        default=1, description="Expansions written per training query."
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="bfloat16 is about twice as fast where the processor supports it, and very slow "
        "elsewhere; weights and loss stay in float32.",
    )
    held_out_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the training queries held out to choose the best step; 0 trains on all "
        "and keeps the last step.",
    )
    evaluation_steps: Positive = Field(
        default=100, description="Steps between two measurements on the held-out queries."
    )
    mini_batch_size: Positive = runtime(
        256,
        description="Texts per process whose activations are kept at once; a larger batch is embedded "
        "twice. Lower it if memory runs out.",
    )
    processes: Positive = runtime(
        1, description="Processes that train together on one machine: GPUs, or shares of a CPU."
    )
    checkpoint_steps: Positive = runtime(200, description="Steps between checkpoints.")
