"""The retriever: what it is, and how texts become vectors that are compared."""

from typing import Literal

from pydantic import Field

from expandr_core.options.base import Options, Positive, added, runtime

VectorType = Literal["float16", "float32"]
ConventionName = Literal["model", "contriever", "bge", "e5", "gte", "minilm", "last-token"]


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

    similarity: Literal["model", "cosine", "dot"] = Field(
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


class RetrieverOptions(Options):
    """The dense retriever, and how its vectors are compared everywhere."""

    model: str = Field(
        default="tiny",
        description="Folder or hub name of AnchorDR (the paper's: yiqingx/AnchorDR), of a "
        "sentence-transformers model, or of an encoder with a convention; or 'tiny' to build one "
        "from the collection's text.",
    )
    tiny: TinyRetrieverOptions = Field(
        default=TinyRetrieverOptions(), title="The tiny retriever, if 'tiny'"
    )
    encoding: EncodingOptions = Field(default=EncodingOptions(), title="Texts to vectors")
    expansion_weight: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of the expansions in an expanded query's vector (paper: 0.5); several "
        "expansions are averaged first.",
    )
    contrastive_temperature: float = Field(
        default=0.02, gt=0, description="Similarities are divided by it in the training loss."
    )
    vector_type: VectorType = Field(
        default="float16",
        description="How the vectors of the corpus are kept: float16 takes half the space, and "
        "changes similarities in the fourth digit.",
    )
    search_memory_gb: float = runtime(
        2.0,
        gt=0,
        description="Memory that exact search may take; a larger corpus is read block by block.",
    )
    convention: ConventionName = Field(
        default="model",
        description="Pooling, prompts, similarity and longest text of a model whose folder does not "
        "say them (expandr_core/encoders/conventions.py has the values); 'model': it does.",
    )
    query_prompt: str = added(
        "model",
        description="Name, among the model's own prompts, of the one that stands before queries, such "
        "as s2p_query or search_query; empty for none; 'model': the one named query.",
    )
    passage_prompt: str = added(
        "model",
        description="The same for passages and expansions, such as retrieval.passage; 'model': the one "
        "named document, passage or corpus.",
    )
