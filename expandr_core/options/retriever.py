"""The retriever: what it is, and how texts become vectors that are compared."""

from typing import Any, Literal

from pydantic import Field, model_validator

from expandr_core.options.base import Options, Positive, added, runtime
from expandr_core.options.conventions import ConventionName

VectorType = Literal["float16", "float32"]
Similarity = Literal["model", "cosine", "dot"]
FusionMethod = Literal["vector", "hyde", "concatenate", "rrf"]


class TinyRetrieverOptions(Options):
    """Static token embeddings, pre-trained without labels on crops of the corpus."""

    vocabulary: int = Field(
        default=3000, ge=300, description="Size of the byte-level BPE vocabulary."
    )
    dimensions: int = Field(default=256, ge=8, description="Size of the vectors.")
    steps: Positive = Field(default=600, description="Training steps.")
    batch_size: Positive = Field(default=64, description="Passages per step, two crops of each.")
    learning_rate: float = Field(default=5e-3, gt=0, description="Peak learning rate of AdamW.")
    initial_deviation: float = Field(
        default=0.005, gt=0, description="Deviation of the initial embeddings."
    )


class EncodingOptions(Options):
    """How texts become vectors, and how these are compared: in training, reward and search alike."""

    similarity: Similarity = Field(
        default="model",
        description="What the model's own configuration says, the cosine, or the raw inner product.",
    )
    max_tokens: int = Field(
        default=512, ge=8, description="Longer texts are cut (also by the model's own limit)."
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="bfloat16 is quicker where the processor has it, and very slow where it does not; "
        "vectors differ in the third digit.",
    )
    batch_size: Positive = runtime(128, description="Texts encoded at once.")


class ConventionOptions(Options):
    """How a model is used, as far as its folder does not say."""

    name: ConventionName = Field(
        default="model",
        description="Convention that gives pooling, prompts, similarity and longest text (values: "
        "expandr_core/options/conventions.py); 'model': the folder says them.",
    )
    query_prompt: str = Field(
        default="model",
        description="Name of the model's prompt for queries, such as s2p_query or search_query; empty: "
        "no prompt; 'model': the prompt called query.",
    )
    passage_prompt: str = Field(
        default="model",
        description="Name of the model's prompt for passages and expansions, such as "
        "retrieval.passage; empty: no prompt; 'model': the prompt called document, passage or corpus.",
    )

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given


class FusionOptions(Options):
    """How a query and its expansions are searched with together."""

    expansion_weight: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of the expansions in an expanded query's vector (paper: 0.5); several "
        "expansions are averaged first. 0: the query alone; 1: the expansions alone.",
    )
    method: FusionMethod = added(
        "vector",
        description="'vector': weighted mean of the vectors. 'hyde': plain mean of n expansions' "
        "vectors and the query's. 'concatenate': encode query and expansions as one text (Query2Doc). "
        "'rrf': fuse the ranks of query and expansions; training and mining use 'vector'.",
    )

    @model_validator(mode="after")
    def _weight_has_an_effect(self) -> "FusionOptions":
        if problem := useless_weight(self.method, self.expansion_weight):
            raise ValueError(f"expansion_weight {problem}")
        return self

    def in_training(self, expansion_weight: float | None) -> "FusionOptions":
        """Return how training and mining fuse: with vectors, and perhaps another weight."""
        return FusionOptions(
            method="vector" if self.method == "rrf" else self.method,
            expansion_weight=self.expansion_weight
            if expansion_weight is None
            else expansion_weight,
        )


def useless_weight(method: FusionMethod, expansion_weight: float) -> str:
    """Say why a method cannot use a weight between 0 and 1 that somebody chose; empty if it can."""
    if method == "vector" or expansion_weight in (0, 0.5, 1):
        return ""
    return (
        f"{expansion_weight:g} has no effect: method {method!r} weighs query and expansions alike; "
        "leave it out, or set it to 0 (the query alone) or 1 (the expansions alone)"
    )


class IndexOptions(Options):
    """How the vectors of a corpus are stored and searched."""

    vector_type: VectorType = Field(
        default="float16",
        description="Type of the stored vectors: float16 takes half the space and changes "
        "similarities in the fourth digit.",
    )
    search_memory_gb: float = runtime(
        0.0,
        ge=0,
        description="Memory for exact search, in GB; 0: a quarter of the machine's. The corpus is read "
        "block by block, once for as many queries as fit.",
    )


class RetrieverOptions(Options):
    """The dense retriever, and how its vectors are made, fused and searched."""

    model: str = Field(
        default="tiny",
        description="Folder or hub name of AnchorDR (the paper's: yiqingx/AnchorDR), of a "
        "sentence-transformers model, or of an encoder with a convention; or 'tiny' to build one "
        "from the collection's text.",
    )
    allow_pickle_conversion: bool = runtime(
        False,
        description="Whether to convert a model's pickled weights (pytorch_model.bin) if it has no "
        "safetensors; of a pickle, only tensors are read.",
    )
    tokenizer: str = added(
        "",
        description="Folder or hub name to take AnchorDR's sp.model from if the model brings none, such "
        "as yiqingx/AnchorDR; empty: the model's own.",
    )
    convention: ConventionOptions = Field(
        default=ConventionOptions(), title="How the model is used"
    )
    tiny: TinyRetrieverOptions = Field(
        default=TinyRetrieverOptions(), title="The tiny retriever, if the model is 'tiny'"
    )
    encoding: EncodingOptions = Field(default=EncodingOptions(), title="Texts to vectors")
    fusion: FusionOptions = Field(default=FusionOptions(), title="Query and expansions")
    index: IndexOptions = Field(default=IndexOptions(), title="Stored vectors and their search")

    def comparing_by(self, similarity: Literal["retriever", "cosine", "dot"]) -> "RetrieverOptions":
        """Return these options with vectors compared otherwise; "retriever" leaves it to them."""
        if similarity == "retriever":
            return self
        encoding = self.encoding.model_copy(update={"similarity": similarity})
        return self.model_copy(update={"encoding": encoding})

    @model_validator(mode="after")
    def _published_parts(self) -> "RetrieverOptions":
        if self.tokenizer and self.model == "tiny":
            raise ValueError(
                "tokenizer is AnchorDR's, but the model is 'tiny', which brings its own; leave "
                "retriever.tokenizer empty, or name a model"
            )
        return self
