"""The whole loop."""

from typing import Literal

from pydantic import Field, model_validator

from expandr_core.options.base import Device, Options, Positive, runtime
from expandr_core.options.data import DataOptions, DemoWorldOptions
from expandr_core.options.distil import DEMO, DistilOptions
from expandr_core.options.evaluation import EvaluationOptions
from expandr_core.options.gate import GateOptions
from expandr_core.options.generation import GenerationOptions, LLMOptions
from expandr_core.options.preferences import PreferenceOptions
from expandr_core.options.promotion import PromotionOptions
from expandr_core.options.retriever import FusionOptions, RetrieverOptions, useless_weight
from expandr_core.options.training import (
    AlignOptions,
    DPOTrainingOptions,
    MiningOptions,
    RetrieverTrainingOptions,
)


class LoopOptions(Options):
    """The rounds: how many, where each starts, and when to stop."""

    rounds: Positive = Field(default=2, description="Rounds at most (the paper's code: 1).")
    order: Literal["align_first", "retriever_first", "retriever_only", "align_only"] = Field(
        default="align_first",
        description="What a round trains. align_first: the LLM, then the retriever on what it writes. "
        "retriever_first: the retriever on what the LLM writes so far, then the LLM, rewarded by that "
        "retriever. retriever_only and align_only: one of them; the other stays.",
    )
    start_from: Literal["data", "pairs", "expansions"] = Field(
        default="data",
        description="What the first round starts from: the data; the pairs of `data.pairs`, so that it "
        "writes no candidates; or the expansions in `data.triples`, so that it writes none. With the "
        "order align_first it then aligns the LLM only if there are `data.pairs` too.",
    )
    retriever_start: Literal["base", "previous"] = Field(
        default="base",
        description="Each round trains from the base retriever, or from the retriever it starts with.",
    )
    next_round: Literal["best", "latest"] = Field(
        default="best",
        description="Models that the next round starts from: those that are kept so far, or the latest, "
        "even if worse. Another round from the same models gets another seed.",
    )
    keep_level: float = Field(
        default=0.05,
        gt=0,
        le=1,
        description="Largest p-value at which a round is kept, of a paired test on the dev queries "
        "against what was kept before it, at first the models of the start. 1: whatever scores higher.",
    )
    stop_without_gain: bool = Field(default=True, description="Stop when a round is not kept.")


class JointLoopOptions(Options):
    """The whole loop: expand, reward, DPO, retrain the retriever, evaluate, and again."""

    seed: int = Field(default=0, ge=0, description="Changes every random choice.")
    data: DataOptions = Field(default=DataOptions(), title="Data")
    world: DemoWorldOptions = Field(
        default=DemoWorldOptions(), title="The demo world, if the data is 'demo'"
    )
    llm: LLMOptions = Field(default=LLMOptions(), title="Language model")
    retriever: RetrieverOptions = Field(default=RetrieverOptions(), title="Retriever")
    expand: GenerationOptions = Field(default=GenerationOptions(), title="Expand")
    preferences: PreferenceOptions = Field(default=PreferenceOptions(), title="Reward and pairs")
    align: AlignOptions = Field(default=AlignOptions(), title="How the language model is aligned")
    dpo: DPOTrainingOptions = Field(
        default=DPOTrainingOptions(), title="DPO, and what SFT and KTO share with it"
    )
    mining: MiningOptions = Field(default=MiningOptions(), title="Hard negatives")
    training: RetrieverTrainingOptions = Field(
        default=RetrieverTrainingOptions(), title="Retriever training"
    )
    evaluate: EvaluationOptions = Field(default=EvaluationOptions(), title="Evaluate")
    gate: GateOptions = Field(default=GateOptions(), title="Gate, and weight of the expansions")
    distil: DistilOptions = Field(
        default=DistilOptions(), title="A query encoder that needs no LLM"
    )
    loop: LoopOptions = Field(default=LoopOptions(), title="Loop")
    promotion: PromotionOptions = Field(default=PromotionOptions(), title="Promotion")
    device: Device = runtime("auto", description="Where models run.")

    @model_validator(mode="after")
    def _training_weight_has_an_effect(self) -> "JointLoopOptions":
        method, weight = self.retriever.fusion.method, self.training.expansion_weight
        if method != "rrf" and weight is not None and (problem := useless_weight(method, weight)):
            raise ValueError(f"training.expansion_weight {problem}")
        return self

    @property
    def measured_retriever(self) -> RetrieverOptions:
        """How evaluation and search use the retriever."""
        return self.retriever.comparing_by(self.evaluate.similarity)

    @property
    def training_fusion(self) -> FusionOptions:
        """How training and mining fuse a query with its expansions."""
        return self.retriever.fusion.in_training(self.training.expansion_weight)

    @property
    def without_expansions(self) -> "JointLoopOptions":
        """The options of a training without expansions, which is the same however others fuse theirs."""
        return self.model_copy(
            update={
                "retriever": self.retriever.model_copy(update={"fusion": FusionOptions()}),
                "training": self.training.model_copy(update={"expansion_weight": None}),
            }
        )

    @model_validator(mode="after")
    def _rewards_expansions(self) -> "JointLoopOptions":
        if not self.preferences.measures_retrieval:
            return self
        compared = (
            f"preferences.reward {self.preferences.reward!r} or beats_query compares retrieval with and "
            "without the expansion"
        )
        if not self.retriever.fusion.expansion_weight:
            raise ValueError(f"{compared}, and retriever.fusion.expansion_weight is 0; raise it")
        if self.retriever.fusion.method == "rrf":
            raise ValueError(
                f"{compared} by one vector, and retriever.fusion.method 'rrf' fuses ranks; choose "
                "another method, or the reward 'candidate_rank' without beats_query"
            )
        return self

    @model_validator(mode="after")
    def _distils_expansions(self) -> "JointLoopOptions":
        method, weight = self.retriever.fusion.method, self.distil.expansion_weight
        if self.distil.enabled and not self.retriever.fusion.expansion_weight:
            raise ValueError(
                "distil.enabled learns the vectors of expanded queries, and "
                "retriever.fusion.expansion_weight is 0; raise it, or set distil.enabled to false"
            )
        if method != "rrf" and weight is not None and (problem := useless_weight(method, weight)):
            raise ValueError(f"distil.expansion_weight {problem}")
        if self.distil.enabled and self.distil.queries == DEMO != self.data.collection:
            raise ValueError(
                "distil.queries 'demo' is the log of data.collection 'demo'; name a file of queries "
                "that people ask of your collection, or set distil.queries to ''"
            )
        return self

    @property
    def rewarding(self) -> RetrieverOptions:
        """The options of the encoder that rewards: the retriever, or another one."""
        encoder, own = self.preferences.reward_encoder, self.retriever
        if encoder.model == "current":
            return own
        encoding = own.encoding.model_copy(update={"similarity": encoder.similarity})
        return RetrieverOptions(
            model=encoder.model,
            allow_pickle_conversion=own.allow_pickle_conversion,
            convention=encoder.convention,
            encoding=encoding,
            fusion=own.fusion,
            index=own.index,
        )
