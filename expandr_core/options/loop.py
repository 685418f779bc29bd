"""Measuring, and the whole loop."""

from typing import Literal

from pydantic import Field

from expandr_core.options.base import Device, Language, Options, Positive, added, runtime
from expandr_core.options.data import DataOptions, DemoWorldOptions
from expandr_core.options.models import LLMOptions, RetrieverOptions
from expandr_core.options.preferences import DPOOptions, ExpandOptions, PreferenceOptions
from expandr_core.options.training import RetrieverTrainingOptions


class EvaluateOptions(Options):
    """How systems are measured and compared."""

    depth: int = Field(default=1000, ge=100, description="Passages kept per query in the run.")
    test: Literal["t", "randomisation"] = Field(
        default="t",
        description="Paired test between two systems. Of fewer than ten clusters, or where all differ "
        "alike, it is the randomisation test either way.",
    )
    significance_level: float = Field(
        default=0.05, gt=0, lt=1, description="After Holm's correction."
    )
    greedy: bool = Field(default=True, description="Also report expansions decoded greedily.")
    identical_ids: Literal["dataset", "ignore", "keep"] = added(
        "dataset",
        description="A passage with the query's id is left out of what is found, as beir does, or "
        "kept. 'dataset': as the dataset's own library does; kept in NanoBEIR, left out elsewhere.",
    )
    bm25_language: Language = added(
        "english",
        description="Whose stemmer and stop words BM25 uses. Scripts without spaces need none: there "
        "it searches for pairs of characters.",
    )


class LoopOptions(Options):
    """How often, from where, and until when."""

    rounds: Positive = Field(default=2, description="Rounds at most (the paper's code: 1).")
    retriever_start: Literal["base", "previous"] = Field(
        default="base",
        description="A round trains the base retriever anew, or goes on from the last round's.",
    )
    stop_without_gain: bool = Field(
        default=True, description="Stop when a round brings no significant gain on the dev part."
    )


class JointLoopOptions(Options):
    """The whole loop: expand, reward, DPO, retrain the retriever, evaluate, and again."""

    seed: int = Field(default=0, ge=0, description="Changes every random choice.")
    data: DataOptions = Field(default=DataOptions(), title="Data")
    world: DemoWorldOptions = Field(
        default=DemoWorldOptions(), title="The demo world, if the data is 'demo'"
    )
    llm: LLMOptions = Field(default=LLMOptions(), title="Language model")
    retriever: RetrieverOptions = Field(default=RetrieverOptions(), title="Retriever")
    expand: ExpandOptions = Field(default=ExpandOptions(), title="Expand")
    preferences: PreferenceOptions = Field(default=PreferenceOptions(), title="Reward and pairs")
    dpo: DPOOptions = Field(default=DPOOptions(), title="DPO")
    training: RetrieverTrainingOptions = Field(
        default=RetrieverTrainingOptions(), title="Retriever training"
    )
    evaluate: EvaluateOptions = Field(default=EvaluateOptions(), title="Evaluate")
    loop: LoopOptions = Field(default=LoopOptions(), title="Loop")
    device: Device = runtime("auto", description="Where models run.")
