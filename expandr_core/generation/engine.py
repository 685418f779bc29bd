"""What all generation engines share: requests, completions, the codec, and how an engine is opened.

An engine is a module with a `Generator`: `transformers_engine`, `vllm_engine` or `endpoint_engine`. All
of them prompt with the same token ids and end a text at the same tokens. They take nothing but these
tokens from a model's generation_config.json: a repetition penalty or a top_k that comes with a model
would change the texts, and with them the likelihoods that DPO compares.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from expandr_core.errors import DataError
from expandr_core.generation.chat_templates import load_tokenizer
from expandr_core.generation.prompts import FittedPrompt, fit_prompt, prompt_ids, turn_end_id
from expandr_core.generation.thoughts import (
    decode_with_markers,
    known_markers,
    marker_at_end,
    remove_thoughts,
)
from expandr_core.options.base import Device
from expandr_core.options.generation import (
    ChatOptions,
    EndpointOptions,
    EngineOptions,
    Precision,
    Prompt,
    PromptOptions,
    SamplingOptions,
    TransformersOptions,
    VLLMOptions,
)

NOT_FINITE = (
    "the language model's logits are not finite (NaN or infinity), so no text can be sampled: its "
    "weights are broken, or overflow in this precision; download the model again, train its adapter "
    "again with a lower dpo.learning_rate, or choose another precision"
)


@dataclass(frozen=True)
class Request:
    """One prompt, and the seed and temperature of each text to write for it.

    Attributes:
        prompt: the prompt, by name or with its wording.
        query: the query.
        passage: the relevant passage, for prompts that show one.
        seeds: one per text.
        sampling_temperatures: one per text; 0 is greedy.
    """

    prompt: Prompt | PromptOptions
    query: str
    passage: str
    seeds: tuple[int, ...]
    sampling_temperatures: tuple[float, ...]


@dataclass(frozen=True)
class Completion:
    """One generated text, decoded, without the end of the turn.

    Attributes:
        text: without thoughts.
        finish_reason: "stop" if the model ended its turn, "length" if the text was cut.
        tokens: number of generated tokens, not counting the end of the turn.
        thoughts: whether the model wrote thoughts before the text.
    """

    text: str
    finish_reason: Literal["stop", "length"]
    tokens: int
    thoughts: bool = False


Completed = list[tuple[int, list[Completion]]]  # indices of requests, with their completions


class Generator(Protocol):
    """A model loaded into an engine."""

    @property
    def precision(self) -> str:
        """Return the precision in which it writes, once it has; empty for a server."""
        ...

    def generate(
        self, requests: Sequence[Request], sampling: SamplingOptions, max_prompt_tokens: int
    ) -> Iterator[Completed]:
        """Yield completed requests, batch by batch, in any order."""
        ...


@dataclass(frozen=True)
class LLMSpec:
    """A language model to run.

    Attributes:
        folder: the model.
        device: "cpu", "cuda" or "auto".
        adapter: folder of a LoRA adapter that is kept apart from the model.
        chat: how to render the chat template.
        max_tokens: the longest prompt and text together.
        precision: in which it writes.
        vllm_python: the interpreter that has vLLM; by default the project's `.venv-vllm`.
    """

    folder: Path
    device: Device = "auto"
    adapter: Path | None = None
    chat: ChatOptions | None = None
    max_tokens: int = 0
    precision: Precision = "auto"
    vllm_python: str = ""


def open_engine(llm: LLMSpec, options: EngineOptions) -> AbstractContextManager[Generator]:
    """Load a model into an engine, for as long as the context lasts.

    Args:
        llm: the model.
        options: those of the engine.

    Raises:
        DataError: if the engine or the model cannot be used.
    """
    match options:
        case VLLMOptions():
            from expandr_core.generation.vllm_engine import open_vllm

            return open_vllm(llm, options)
        case EndpointOptions():
            from expandr_core.generation.endpoint_engine import EndpointGenerator

            if llm.adapter:
                raise DataError(
                    "llm.engine is 'endpoint', but the language model is an adapter, which a server "
                    "does not take; use 'transformers' or 'vllm'"
                )
            return nullcontext(EndpointGenerator(llm.folder, options, llm.chat))
        case TransformersOptions():
            from expandr_core.generation.transformers_engine import TransformersGenerator

            more = (llm.adapter, llm.chat, options.batch_size, llm.precision)
            return nullcontext(TransformersGenerator(llm.folder, llm.device, *more))


def check_trainable(options: EngineOptions) -> None:
    """Check that an engine runs models of the store, which training can change.

    Raises:
        DataError: if it does not.
    """
    if isinstance(options, EndpointOptions):
        raise DataError(
            "llm.engine is 'endpoint', but a server keeps its model and the loop trains it; use "
            "'vllm' or 'transformers' here, and an endpoint with `expandr stage expansions`"
        )


def causes_of_empty_texts(options: EngineOptions) -> list[str]:
    """Return likely causes of empty texts that are particular to an engine, with their remedies."""
    if isinstance(options, EndpointOptions):
        return [
            "the server answers with content null, as servers do that separate a model's thoughts "
            "(switch that, or the server's reasoning parser, off, or set llm.endpoint.api to "
            "'completions')"
        ]
    return []


class Codec:
    """A model folder's rules for prompts and texts, the same for every engine.

    Attributes:
        tokenizer: the model's.
        turn_end: the token that ends the assistant's turn.
        ends: all tokens that end a text, including the model's ends of sequence.
    """

    def __init__(self, folder: Path, chat: ChatOptions | None = None):
        """Read tokenizer and configuration from a local folder; `chat` applies to its template."""
        from transformers import AutoConfig, GenerationConfig

        self.tokenizer = load_tokenizer(folder, chat)
        self.turn_end = turn_end_id(self.tokenizer)
        self._prompt_marker = marker_at_end(self.tokenizer, prompt_ids(self.tokenizer, "a"))
        self._markers = known_markers(self.tokenizer)
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        self._context: int | None = getattr(config, "max_position_embeddings", None)
        settings = folder / "generation_config.json"
        if settings.is_file():  # read as JSON: the library rejects files that contradict themselves
            eos = json.loads(settings.read_bytes()).get("eos_token_id")
        else:
            eos = GenerationConfig.from_model_config(config).eos_token_id
        self.ends = {self.turn_end, *([eos] if isinstance(eos, int) else eos or [])}

    def prompts(
        self, requests: Sequence[Request], sampling: SamplingOptions, max_prompt_tokens: int
    ) -> list[FittedPrompt]:
        """Render the prompt of each request.

        Raises:
            DataError: if a prompt is too long, or leaves too little of the model's context.
        """
        tokens = max_prompt_tokens + sampling.max_new_tokens
        if self._context is not None and tokens > self._context:
            raise DataError(
                f"max_prompt_tokens + max_new_tokens = {tokens} exceeds the model's context of "
                f"{self._context} tokens; lower one of them"
            )
        return [
            fit_prompt(self.tokenizer, r.prompt, r.query, r.passage, max_prompt_tokens)
            for r in requests
        ]

    def completion(self, ids: list[int]) -> Completion:
        """Decode a text up to the first token that ends it; if there is none, the text was cut."""
        length = next((n for n, token in enumerate(ids) if token in self.ends), len(ids))
        text, thoughts = self.answer(decode_with_markers(self.tokenizer, ids[:length]))
        return Completion(text, "stop" if length < len(ids) else "length", length, thoughts)

    def answer(self, text: str) -> tuple[str, bool]:
        """Remove the thoughts before a text; also return whether there were any."""
        return remove_thoughts(text, self._prompt_marker, self._markers)
