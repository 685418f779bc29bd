"""Training: alignment of the language model, and contrastive training of the retriever."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from expandr_core.options.base import Options, Positive, added, runtime

ALL_LINEAR = "all-linear"
PairLoss = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "apo_zero",
    "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip
SORTING_LOSSES = ("aot", "aot_unpaired")


class LoRAOptions(Options):
    """The adapter that alignment trains (Hu et al., 2022)."""

    rank: Positive = Field(default=8, description="Rank of the adapter.")
    alpha: Positive = Field(default=32, description="The adapter's scale is alpha / rank.")
    targets: tuple[str, ...] = Field(
        default=("q_proj", "v_proj"),
        min_length=1,
        description="Linear layers to adapt, by the ends of their names; 'all-linear': every one but "
        "the output head and the experts of a mixture.",
    )

    @model_validator(mode="after")
    def _all_or_some(self) -> "LoRAOptions":
        if ALL_LINEAR in self.targets and len(self.targets) > 1:
            raise ValueError(
                f"targets: {ALL_LINEAR!r} stands alone; remove it, or all the other names"
            )
        return self


class AlignmentTrainingOptions(Options):
    """What every training of a LoRA adapter of the language model needs."""

    learning_rate: float = Field(
        default=2e-5, gt=0, description="Peak learning rate of AdamW, linear decay."
    )
    epochs: float = Field(default=2, gt=0, description="Passes over the pairs.")
    batch_size: Positive = Field(
        default=16, description="Pairs per optimiser step; for SFT and KTO, texts."
    )
    lora: LoRAOptions = Field(default=LoRAOptions(), title="The adapter")
    warmup_steps: int = Field(default=0, ge=0, description="Steps until the peak learning rate.")
    max_grad_norm: float = Field(
        default=10.0, gt=0, description="Gradients are clipped to this norm."
    )
    max_tokens: int = Field(
        default=612,
        ge=16,
        description="Longest prompt plus text; a longer text loses its end, a prompt nothing.",
    )
    evaluation_steps: Positive = Field(
        default=100,
        description="Steps between evaluations on the dev pairs, each with a checkpoint; the adapter "
        "with the lowest loss is kept. Without dev pairs, the last one is.",
    )
    precision: Literal["auto", "float32", "bfloat16"] = added(
        "auto",
        description="In which the language model computes; the adapter is always in float32. auto: "
        "bfloat16 on a GPU, float32 on a processor, where bfloat16 is about twice as fast if the "
        "processor has it, and very slow if not.",
    )
    device_batch_size: Positive = runtime(
        16, description="Pairs per process and forward pass; gradients accumulate over the rest."
    )
    processes: Positive = runtime(
        1,
        description="Processes that train together on one machine, one per GPU, or sharing the CPU.",
    )
    zero: Literal["none", "2", "3"] = runtime(
        "none",
        description="DeepSpeed's ZeRO: shard the optimiser state and the gradients (2), or the weights "
        "too (3), for a model that does not fit one GPU.",
    )
    gradient_checkpointing: bool = runtime(
        False, description="Saves memory for about a third more time."
    )
    checkpoint_steps: Positive = runtime(
        50, description="Steps between checkpoints, if there are no dev pairs."
    )


class DPOTrainingOptions(AlignmentTrainingOptions):
    """Direct preference optimisation of a LoRA adapter; SFT and KTO share the training's settings."""

    beta: float = Field(
        default=0.1,
        gt=0,
        description="Strength of the pull towards the reference model; for the loss ipo, its tau. KTO "
        "has it too.",
    )
    loss: tuple[PairLoss, ...] = added(
        ("sigmoid",),
        min_length=1,
        description="Losses to add up, by TRL's names. [sigmoid] is DPO as published; [sigmoid, sft] "
        "also keeps the likelihood of the chosen texts from falling.",
    )
    loss_weights: tuple[Annotated[float, Field(gt=0)], ...] = added(
        (), description="A weight for each loss, in the same order; empty: 1 for each."
    )
    ld_alpha: float = added(
        1.0,
        ge=0,
        le=1,
        description="Against a taste for length (LD-DPO): weight of the tokens of the longer text "
        "beyond the length of the shorter one; 1: they count in full.",
    )
    label_smoothing: float = added(
        0.0,
        ge=0,
        lt=0.5,
        description="Share of the pairs that are taken to be the wrong way round; only for the losses "
        "robust and exo_pair, and the latter needs it above 0.",
    )
    merge: bool = runtime(
        True,
        description="Write the whole model with the adapter merged. Otherwise only the adapter is "
        "written, megabytes a round, and every later stage applies it to the base model.",
    )

    def shared(self) -> dict[str, Any]:
        """Return the options that SFT and KTO share with DPO."""
        return {name: getattr(self, name) for name in AlignmentTrainingOptions.model_fields}

    @field_validator("loss", mode="before")
    @classmethod
    def _trains_alike_in_every_layout(cls, given: Any) -> Any:
        given = (given,) if isinstance(given, str) else given
        for name in given if isinstance(given, list | tuple) else ():
            if name in SORTING_LOSSES:
                raise ValueError(
                    f"{name} compares the sorted pairs of a batch, so it would depend on "
                    "device_batch_size and processes; choose a loss of single pairs, such as sigmoid"
                )
        return given

    @model_validator(mode="after")
    def _settings_fit_the_losses(self) -> "DPOTrainingOptions":
        if len(set(self.loss)) < len(self.loss):
            raise ValueError("loss: names a loss twice; name it once and set loss_weights")
        if self.loss_weights and len(self.loss_weights) != len(self.loss):
            raise ValueError(
                f"loss_weights has {len(self.loss_weights)} weights for {len(self.loss)} losses; give "
                "one for each, or none"
            )
        if "exo_pair" in self.loss and not self.label_smoothing:
            raise ValueError(
                "the loss exo_pair needs a label_smoothing above 0; its paper takes 0.001"
            )
        if self.label_smoothing and not {"exo_pair", "robust"} & set(self.loss):
            raise ValueError(
                "label_smoothing has an effect only on the losses robust and exo_pair; add one of "
                "them to loss, or set label_smoothing to 0"
            )
        return self


class KTOTrainingOptions(AlignmentTrainingOptions):
    """Kahneman-Tversky optimisation of a LoRA adapter, put together from `align` and `dpo`."""

    beta: float = Field(
        default=0.1, gt=0, description="Strength of the pull towards the reference model."
    )
    desirable_weight: float = Field(default=1.0, gt=0, description="Weight of desirable texts.")
    undesirable_weight: float = Field(default=1.0, gt=0, description="Weight of undesirable texts.")


class AlignOptions(Options):
    """How the language model is aligned; what the methods share is in the group `dpo`."""

    method: Literal["dpo", "sft", "sft+dpo", "kto"] = Field(
        default="dpo",
        description="dpo: prefer each query's best candidate to its worst. sft: imitate the best. "
        "sft+dpo: first the one, then the other. kto: raise or lower every candidate on its own, by "
        "whether it is among the better half.",
    )
    sft_learning_rate: float = Field(
        default=1e-4, gt=0, description="Of SFT, in place of dpo.learning_rate."
    )
    sft_epochs: float = Field(default=2, gt=0, description="Of SFT, in place of dpo.epochs.")
    desirable_weight: float = Field(
        default=1.0, gt=0, description="KTO: weight of the candidates to raise."
    )
    undesirable_weight: float = Field(
        default=1.0, gt=0, description="KTO: weight of the candidates to lower."
    )


class MiningOptions(Options):
    """Hard negatives from the collection, for training examples that bring none."""

    depth: Positive = Field(
        default=30, description="Top-ranked passages per query that are candidates."
    )
    margin: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Leave out passages less than this share below the positive's similarity, because "
        "they may be relevant (NV-Retriever: 0.05); 0 keeps all.",
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
        description="'by_source' fills each batch from one source (a file of triples), so that its "
        "in-batch negatives are harder.",
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
    expansion_weight: float | None = added(
        None,
        ge=0,
        le=1,
        description="Share of the expansion in training and in mining for it, if another than in "
        "search (retriever.fusion.expansion_weight). 1 trains on the expansion instead of the query, as "
        "LLM-QE does.",
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
        description="Texts per process whose activations fit into memory at once; larger batches are "
        "embedded twice (GradCache). Lower it if memory runs out.",
    )
    processes: Positive = runtime(
        1,
        description="Processes that train together on one machine, one per GPU, or sharing the CPU.",
    )
    checkpoint_steps: Positive = runtime(200, description="Steps between checkpoints.")
