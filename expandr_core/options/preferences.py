"""Which candidates become preference pairs."""

from typing import Any, Literal

from pydantic import Field, model_validator

from expandr_core.options.base import Options, Positive, added, runtime
from expandr_core.options.retriever import ConventionOptions, Similarity

Reward = Literal["candidate_rank", "similarity", "corpus_rank", "ndcg_delta"]
PAPER_THRESHOLD = 0.6  # of the sum of two cosines
ACCEPT_ALL = -10_000.0  # inner products of unnormalised vectors are in the hundreds


class RewardEncoderOptions(Options):
    """The encoder that rewards the candidates; all but `model` say how it is used if it is another."""

    model: str = Field(
        default="current",
        description="'current': the retriever of each round. Or the folder or hub name of another "
        "encoder, which rewards in every round (the paper's code: facebook/contriever).",
    )
    convention: ConventionOptions = Field(
        default=ConventionOptions(), title="How the reward's encoder is used"
    )
    similarity: Similarity = Field(
        default="model", description="As retriever.encoding.similarity, for this encoder."
    )

    @model_validator(mode="before")
    @classmethod
    def _model_alone(cls, given: Any) -> Any:
        return {"model": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _says_what_is_used(self) -> "RewardEncoderOptions":
        usage = (self.convention, self.similarity)
        if self.model == "current" and usage != (ConventionOptions(), "model"):
            raise ValueError(
                "preferences.reward_encoder.model is 'current': the retriever's own options say how it "
                "is used; leave convention and similarity out, or name another encoder"
            )
        if self.model == "tiny":
            raise ValueError(
                "the reward's encoder cannot be 'tiny'; say 'current', or name a folder"
            )
        return self


class PreferenceOptions(Options):
    """Which candidates become preference pairs."""

    reward: Reward = added(
        "candidate_rank",
        description="The retriever's reward. candidate_rank (the paper's): 1/rank among the query's "
        "candidates by similarity to the positive. The others see what retrieval gains by the expanded "
        "query: similarity (its cosine to the positive, less that of the query alone), corpus_rank "
        "(1/rank of the positive in the whole corpus), ndcg_delta (nDCG, less that of the query alone).",
    )
    reward_k: int = added(10, ge=1, le=10_000, description="Ranks that count for ndcg_delta.")
    retriever_weight: float = added(
        1.0, ge=0, le=1000, description="Weight of the retriever's reward; 0: it decides nothing."
    )
    self_weight: float = added(
        1.0,
        ge=0,
        le=1000,
        description="Weight of the self-reward, nearness to the LLM's own answer; 0: no answers are "
        "written.",
    )
    reward_encoder: RewardEncoderOptions = runtime(  # the rewards' key has the model's content
        RewardEncoderOptions(), title="Encoder of the reward, if it is not the retriever"
    )
    beats_query: bool = added(
        False,
        description="Keep a pair only if its chosen text finds the positives better than the query "
        "alone does, as the reward measures it (candidate_rank: by cosine to the positive).",
    )
    acceptance: Literal["auto", "threshold", "quantile"] = Field(
        default="auto",
        description="A query is accepted if its best candidate's summed similarity (to the positive "
        "and to the answer, weighted like the rewards) reaches the threshold, or is above this quantile "
        "of all queries. auto: Contriever has the paper's threshold, 0.6 (scaled with the mean of the "
        "weights); with other encoders, whose similarities lie elsewhere, all but the lowest tenth of "
        "the queries are accepted (if lazy, the threshold).",
    )
    acceptance_value: float = Field(
        default=PAPER_THRESHOLD,
        ge=ACCEPT_ALL,
        le=10_000,
        description="The threshold, or the quantile (from 0 to 1); given alone it is a threshold.",
    )
    minimum_margin: float = Field(
        default=0.0, ge=0, description="Smallest difference between the rewards of a pair."
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
        if self.acceptance == "auto" and self.acceptance_value != PAPER_THRESHOLD:
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

    @model_validator(mode="after")
    def _has_a_reward(self) -> "PreferenceOptions":
        if not self.retriever_weight + self.self_weight:
            raise ValueError("retriever_weight and self_weight are both 0; one of them must decide")
        if self.reward != "candidate_rank" and not self.retriever_weight:
            raise ValueError(
                f"reward {self.reward!r} decides nothing with a retriever_weight of 0; raise the "
                "weight, or leave the reward out"
            )
        if self.reward_k != 10 and self.reward != "ndcg_delta":
            raise ValueError("only the reward 'ndcg_delta' has a reward_k; leave it out")
        if self.minimum_margin >= self.largest_margin:
            raise ValueError(
                f"a minimum_margin of {self.minimum_margin:g} drops every pair: the rewards of two "
                f"candidates differ by less than {self.largest_margin:g}"
            )
        return self

    @property
    def largest_margin(self) -> float:
        """The largest difference between the rewards of two candidates; cosines are from -1 to 1."""
        return self.retriever_weight * (2 if self.reward == "similarity" else 1) + self.self_weight

    @property
    def measures_retrieval(self) -> bool:
        """Whether the retrieval by expanded queries is compared with that of the query alone."""
        return self.reward != "candidate_rank" or self.beats_query
