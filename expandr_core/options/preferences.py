"""Which candidates become preference pairs."""

from typing import Any, Literal

from pydantic import Field, model_validator

from expandr_core.options.base import Options, Positive, runtime


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
        ge=-10_000,  # inner products of unnormalised vectors are in the hundreds
        le=10_000,
        description="The threshold, or the quantile (from 0 to 1); given alone it is a threshold.",
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
    max_length_bias: float = runtime(
        0.9,
        ge=0.5,
        le=1,
        description="If in more than this share of the pairs the chosen text is the longer one (or "
        "the shorter one), and the reward tells nothing else, the run stops before DPO. 1: never.",
    )
    dpo_dev_share: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Share of the pairs held out to choose DPO's best step; 0 trains on all pairs.",
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
        if self.acceptance == "quantile" and (
            "acceptance_value" not in self.model_fields_set or not 0 <= self.acceptance_value <= 1
        ):
            raise ValueError(
                "acceptance 'quantile' needs an acceptance_value from 0 to 1: 0.1 leaves out the "
                "lowest tenth of the queries"
            )
        return self
