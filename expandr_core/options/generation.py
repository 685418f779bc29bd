"""The language model: what it is, what runs it, and what it is asked to write."""

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, FiniteFloat, model_validator

from expandr_core.options.base import Options, Positive, added, runtime

Engine = Literal["transformers", "vllm", "endpoint"]
Precision = Literal["auto", "float32", "bfloat16"]
QueriesPerShard = Annotated[
    int,
    Field(ge=1, description="Queries per shard, an artifact; a kill loses one shard at most."),
]
Prompt = Literal["q2d", "q2a", "q2q", "q2e", "q2c"]
PromptName = Literal["q2d", "q2a", "q2q", "q2e", "q2c", "own"]
OWN_PROMPT: PromptName = "own"
LONGEST_PROMPT = 100_000  # characters; a longer file is hardly a prompt
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

    template: Variables = Field(default={}, description="Variables of the chat template.")
    date: Day = Field(
        default="", description="Date in the prompt; empty if the template writes none."
    )


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
        default=512, ge=64, description="Longer texts are cut into pieces of this length."
    )
    learning_rate: float = Field(
        default=3e-3, gt=0, description="Peak learning rate of AdamW, linear decay."
    )
    checkpoint_steps: Positive = runtime(200, description="Steps between checkpoints.")


class TransformersOptions(Options):
    """The engine transformers, in the stage's process."""

    batch_size: int = runtime(
        0,
        ge=0,
        description="Texts generated at once. 0: 256 for a model of less than 300 million parameters, "
        "otherwise 64.",
    )


class VLLMOptions(Options):
    """The engine vLLM, in its own interpreter, which `make vllm-env` sets up."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="Of the weights, for float16; auto: that of llm.precision."
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
    """An OpenAI-compatible server; the stage reads its API key from OPENAI_API_KEY."""

    url: str = runtime(
        "", description="Base URL, such as http://host:8000/v1, without credentials."
    )
    model: str = Field(default="", description="The server's name for the model given in `model`.")
    api: Literal["completions", "chat"] = Field(
        default="completions",
        description="completions sends the prompt as token ids, which the server must accept (vLLM "
        "does); chat sends the user's turn and relies on the server's chat template.",
    )
    concurrency: Positive = runtime(64, description="Requests in flight.")
    retries: int = runtime(
        8,
        ge=0,
        description="Retries of a request, with pauses, while the server is busy, failing or down.",
    )
    timeout_seconds: float = runtime(600, gt=0, description="Timeout of a request.")


EngineOptions = TransformersOptions | VLLMOptions | EndpointOptions


class LLMOptions(Options):
    """The language model that writes the expansions, and the engine that runs it."""

    model: str = Field(
        default="tiny",
        description="Folder or hub name of a causal LM with a chat template, or 'tiny' to build one "
        "from the collection's text (paper: meta-llama/Meta-Llama-3-8B-Instruct).",
    )
    adapter: str = added(
        "",
        description="Folder or hub name of a LoRA adapter for `model` that PEFT wrote (the paper's: "
        "chengpingan/ExpandR_LLM); the loop then starts from both. Empty: the model alone.",
    )
    tiny: TinyLLMOptions = Field(default=TinyLLMOptions(), title="The tiny LLM, if 'tiny'")
    template: Variables = Field(
        default={},
        description="Variables of the chat template, such as `enable_thinking: false`; a variable that "
        "the template does not read is refused.",
    )
    date: Day = Field(
        default=DEFAULT_DATE,
        description="Date (YYYY-MM-DD) for chat templates that print the current date; part of the key "
        "only if the template reads it.",
    )
    engine: Engine = Field(
        default="transformers",
        description="Runs the model: transformers, vLLM, or a remote server ('endpoint', only for "
        "single stages and evaluation, as the loop trains its model). Engines sample different texts.",
    )
    precision: Precision = added(
        "auto",
        description="In which the model writes. auto: bfloat16 on a GPU and, for all but small models, "
        "on a processor where a short measurement finds it quicker; otherwise float32. A server "
        "computes as it was started.",
    )
    transformers: TransformersOptions = Field(
        default=TransformersOptions(), title="transformers, if it is the engine"
    )
    vllm: VLLMOptions = Field(default=VLLMOptions(), title="vLLM, if it is the engine")
    endpoint: EndpointOptions = Field(
        default=EndpointOptions(), title="The server, if the engine is 'endpoint'"
    )

    @model_validator(mode="after")
    def _adapter_runs_here(self) -> "LLMOptions":
        if self.adapter and self.engine == "endpoint":
            raise ValueError(
                "adapter: a server keeps its model as it is; set llm.engine to 'transformers' or "
                "'vllm', or leave llm.adapter empty"
            )
        return self

    @model_validator(mode="after")
    def _precision_is_the_engine_s(self) -> "LLMOptions":
        if self.precision != "auto" and self.engine == "endpoint":
            raise ValueError(
                "precision: a server computes as it was started; leave llm.precision 'auto'"
            )
        own = self.vllm.precision if self.engine == "vllm" else "auto"
        if "auto" not in (self.precision, own) and own != self.precision:
            raise ValueError(
                f"precision is {self.precision!r}, but vllm.precision {own!r}; leave one of them 'auto'"
            )
        return self

    @property
    def settings(self) -> EngineOptions:
        """The options of the engine."""
        settings: dict[Engine, EngineOptions] = {
            "transformers": self.transformers,
            "vllm": self.vllm,
            "endpoint": self.endpoint,
        }
        return settings[self.engine]


class SamplingOptions(Options):
    """How texts are sampled from the language model."""

    samples: Positive = Field(
        default=1,
        description="Texts per query, a multiple of the number of temperatures, which share them.",
    )
    sampling_temperatures: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        default=(1.0,), min_length=1, description="0 is greedy; higher is more varied."
    )
    top_p: float = Field(
        default=0.9, gt=0, le=1, description="Sample among the likeliest tokens of this mass."
    )
    max_new_tokens: Positive = Field(
        default=512, description="A longer text is cut and marked 'length'."
    )

    @model_validator(mode="after")
    def _evenly_spread(self) -> "SamplingOptions":
        if self.samples % len(self.sampling_temperatures):
            raise ValueError(
                f"samples ({self.samples}) must be a multiple of the number of "
                f"sampling_temperatures ({len(self.sampling_temperatures)})"
            )
        return self


class PromptOptions(Options):
    """What the language model is asked for."""

    name: PromptName = Field(
        default="q2d",
        description="Kind of text to ask for, as expandr_core/generation/prompts.py words it: a "
        "passage (q2d, the paper's), an answer (q2a), a rewrite (q2q), keywords (q2e) or a rationale "
        "(q2c); or 'own', worded by `text`. An answer that is to be an expansion sees no document.",
    )
    max_tokens: Positive = Field(
        default=1024,
        description="Longest prompt in tokens; a longer one is shortened within its query or passage.",
    )
    text: str = added(
        "",
        description="A prompt of your own, with {query} where the query goes; space around it is "
        "dropped. In a config or after --set, `expand.prompt: FILE.txt` reads it from a file.",
    )

    @model_validator(mode="before")
    @classmethod
    def _name_or_text_alone(cls, given: Any) -> Any:
        if isinstance(given, str):
            return {"name": given}
        if not isinstance(given, dict) or not isinstance(text := given.get("text", ""), str):
            return given
        text = text.replace("\r\n", "\n").strip()
        # a form always sends a name
        named = {"name": OWN_PROMPT} if text and given.get("name", "q2d") == "q2d" else {}
        return {**given, **named, **({"text": text} if "text" in given else {})}

    @model_validator(mode="after")
    def _text_is_a_prompt(self) -> "PromptOptions":
        if self.name != OWN_PROMPT and self.text:
            raise ValueError(
                f"name {self.name!r} and a text of your own exclude each other; leave out one of them"
            )
        if self.name == OWN_PROMPT and (problem := fault_of_prompt(self.text)):
            raise ValueError(problem)
        return self


def fault_of_prompt(text: str) -> str:
    """Say what is wrong with a prompt of one's own; empty if nothing is.

    >>> fault_of_prompt("Write about {query}.")
    ''
    >>> fault_of_prompt("Write.")[:26]
    'the prompt has no {query};'
    """
    if not text.strip():
        return "the prompt is empty; write what to ask for, with {query} where the query goes"
    if len(text) > LONGEST_PROMPT:
        return f"the prompt has {len(text)} characters; shorten it to {LONGEST_PROMPT} at most"
    if "{query}" not in text:
        return "the prompt has no {query}; write {query} where the query goes"
    return ""


class GenerationOptions(Options):
    """What the language model writes: candidates to rank, answers to compare with, expansions."""

    prompt: PromptOptions = Field(default=PromptOptions(), title="The prompt")
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
    queries_per_shard: QueriesPerShard = 256
