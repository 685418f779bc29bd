"""What the language model writes, which of it becomes preference pairs, and DPO."""

from typing import Any, Literal

from pydantic import Field, model_validator

from expandr_core.options.base import Options, Positive, Prompt, runtime

ALL_LINEAR = "all-linear"


class SamplingOptions(Options):
    """How texts are sampled from the language model."""

    samples: Positive = Field(
        default=1,
        description="Texts per query, a multiple of the number of temperatures, which share them.",
    )
    sampling_temperatures: tuple[float, ...] = Field(
        default=(1.0,), min_length=1, description="0 is greedy; higher is more varied."
    )
    top_p: float = Field(
        default=0.9, gt=0, le=1, description="Sample among the likeliest tokens of this mass."
    )
    max_new_tokens: Positive = Field(
        default=512, description="A longer text is cut and marked 'length'."
    )
    batch_size: Positive = runtime(
        64,
        description="Texts generated at once, by transformers; vLLM takes what its memory holds.",
    )

    @model_validator(mode="after")
    def _evenly_spread(self) -> "SamplingOptions":
        if self.samples % len(self.sampling_temperatures):
            raise ValueError(
                f"samples ({self.samples}) must be a multiple of the number of "
                f"sampling_temperatures ({len(self.sampling_temperatures)})"
            )
        return self


class ExpandOptions(Options):
    """How the language model writes: candidates to rank, answers to compare with, expansions."""

    prompt: Prompt = Field(
        default="q2d", description="What is asked for: a passage (the paper), or another."
    )
    candidates: SamplingOptions = Field(
        default=SamplingOptions(samples=32, sampling_temperatures=(0.8, 0.9, 1.0, 1.1)),
        title="Candidates for the preference pairs",
    )
    answer: SamplingOptions = Field(
        default=SamplingOptions(), title="The answer of the self-reward"
    )
    expansion: SamplingOptions = Field(
        default=SamplingOptions(),
        title="Expansions for retriever training and for evaluation (which averages their vectors)",
    )
    max_prompt_tokens: Positive = Field(
        default=1024,
        description="A longer prompt is shortened within its passage or query, never around it.",
    )
    queries_per_shard: Positive = Field(
        default=256, description="A shard is an artifact of its own; a kill loses one at most."
    )


class PreferenceOptions(Options):
    """Which candidates become preference pairs."""

    acceptance: Literal["auto", "threshold", "quantile"] = Field(
        default="auto",
        description="A query is accepted if its best candidate's summed similarity (to the positive "
        "and to the answer) reaches the threshold, or is above this quantile of all queries. auto: "
        "Contriever has the paper's threshold, 0.6; with other encoders, whose similarities lie "
        "elsewhere, all but the lowest tenth of the queries are accepted (if lazy, the threshold).",
    )
    acceptance_value: float = Field(
        default=0.6,
        ge=-2,
        le=2,
        description="The threshold, or the quantile; given alone it is a threshold.",
    )
    minimum_margin: float = Field(
        default=0.0, ge=0, lt=2, description="Smallest difference between the rewards of a pair."
    )
    max_pairs: Positive = Field(
        default=30_000,
        description="A seeded sample of so many pairs is kept; if lazy, the first so many.",
    )
    lazy: bool = Field(
        default=False,
        description="Write candidates shard by shard, and stop when max_pairs are accepted, instead "
        "of writing all and keeping a sample. Needs acceptance 'threshold'.",
    )
    minimum_pairs: Positive = runtime(
        100, description="With fewer pairs the run stops before DPO, and says why."
    )
    length_share: float = runtime(
        0.9,
        ge=0.5,
        le=1,
        description="If in more than this share of the pairs the chosen text is the longer one (or "
        "the shorter one), and the reward tells nothing else, the run stops before DPO. 1: never.",
    )
    dev_share: float = Field(
        default=0.1, ge=0, lt=1, description="Share of the pairs that only measures DPO."
    )

    @model_validator(mode="before")
    @classmethod
    def _a_value_alone_is_a_threshold(cls, given: Any) -> Any:
        if isinstance(given, dict) and "acceptance_value" in given:
            return {"acceptance": "threshold"} | given
        return given

    @model_validator(mode="after")
    def _knows_the_threshold(self) -> "PreferenceOptions":
        if self.acceptance == "auto" and self.acceptance_value != 0.6:
            raise ValueError(
                f"acceptance 'auto' takes no acceptance_value ({self.acceptance_value}); say "
                "'threshold' or 'quantile', or leave the value out"
            )
        if self.lazy and self.acceptance == "quantile":
            raise ValueError(
                "lazy pairs need acceptance 'threshold': a quantile of all queries is known only "
                "when all have been rewarded; set lazy to false, or acceptance to 'threshold'"
            )
        return self


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


class DPOOptions(Options):
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
