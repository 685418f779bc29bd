"""The language model and the retriever, and how they are used everywhere."""

from datetime import date
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, FiniteFloat

from expandr_core.options.base import (
    ConventionName,
    Engine,
    Options,
    Positive,
    VectorType,
    added,
    runtime,
)

DEFAULT_DATE = "2024-07-26"  # what Llama's templates write where nobody tells them the date
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]
Variables = dict[Variable, bool | int | FiniteFloat | str]


def _day(value: object) -> object:
    if isinstance(value, date):  # YAML reads it so
        return value.isoformat()[:10]
    return date.fromisoformat(value).isoformat() if isinstance(value, str) and value else value


Day = Annotated[str, BeforeValidator(_day)]


class ChatOptions(Options):
    """How a model's chat template is rendered, as the stages that write or train prompts need it."""

    template: Variables = added({}, description="Variables of the chat template.")
    date: Day = added("", description="The date that it writes; empty where it writes none.")


class TinyLLMOptions(Options):
    """A small Llama and its tokenizer, trained from scratch on the collection's own text."""

    vocabulary: int = Field(
        default=3000, ge=300, description="Size of the byte-level BPE vocabulary."
    )
    hidden_size: int = Field(
        default=128, ge=32, multiple_of=32, description="Width; heads are 32 wide."
    )
    layers: Positive = Field(default=3, description="Number of transformer layers.")
    steps: Positive = Field(default=1400, description="Training steps.")
    batch_size: Positive = Field(default=16, description="Texts per step.")
    max_tokens: int = Field(
        default=512, ge=64, description="Longer texts are cut into pieces this long."
    )
    learning_rate: float = Field(
        default=3e-3, gt=0, description="Peak learning rate of AdamW, linear decay."
    )
    checkpoint_steps: Positive = runtime(200, description="Steps between checkpoints.")


class VLLMOptions(Options):
    """The engine vLLM, in an interpreter of its own, which `make vllm-env` makes."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="Of the weights. auto: bfloat16 on a GPU, float32 on a CPU."
    )
    quantisation: Literal["none", "fp8", "bitsandbytes"] = Field(
        default="none",
        description="How the weights are quantised when they are loaded; what is quantised already "
        "needs 'none'.",
    )
    tensor_parallel: Positive = runtime(1, description="GPUs that share one copy of the model.")
    data_parallel: Positive = runtime(
        1, description="Copies of the model, each on GPUs of its own; they share the queries."
    )
    gpu_memory_share: float = runtime(
        0.9, gt=0, le=1, description="Share of a GPU's memory that vLLM takes."
    )


class EndpointOptions(Options):
    """An OpenAI-compatible server; its key is in OPENAI_API_KEY, in the environment of who asks."""

    url: str = runtime("", description="Such as http://host:8000/v1, without a key in it.")
    model: str = Field(
        default="", description="Name under which the server has the model; the same as `model`."
    )
    api: Literal["completions", "chat"] = Field(
        default="completions",
        description="What to send: the prompt's token ids to /completions, where the server takes "
        "them (vLLM does), or the user's turn to /chat/completions, where its template is used.",
    )
    concurrency: Positive = runtime(64, description="Texts asked for at once.")
    retries: int = runtime(
        8, ge=0, description="Of a request that met a busy, failing or absent server; with pauses."
    )
    timeout_seconds: float = runtime(600, gt=0, description="Longest wait for one text.")


class LLMOptions(Options):
    """The language model that writes the expansions, and the engine that runs it."""

    model: str = Field(
        default="tiny",
        description="Folder or hub name of a causal LM with a chat template, or 'tiny' to build one "
        "from the collection's text (paper: meta-llama/Meta-Llama-3-8B-Instruct).",
    )
    tiny: TinyLLMOptions = Field(default=TinyLLMOptions(), title="The tiny LLM, if 'tiny'")
    template: Variables = added(
        {},
        description="Variables of the model's chat template, such as `enable_thinking: false`; those "
        "that it does not read are refused.",
    )
    date: Day = Field(
        default=DEFAULT_DATE,
        description="The date, as YEAR-MONTH-DAY, for chat templates that write today's. It is in the "
        "key where the template reads it.",
    )
    engine: Engine = Field(
        default="transformers",
        description="What runs the model: transformers; vLLM, which is made for it; or a server "
        "elsewhere, which only the flow `expand` can use, as the loop's model changes. Their "
        "sampled texts differ.",
    )
    vllm: VLLMOptions = Field(default=VLLMOptions(), title="vLLM, if the engine is 'vllm'")
    endpoint: EndpointOptions = Field(
        default=EndpointOptions(), title="The server, if the engine is 'endpoint'"
    )


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
