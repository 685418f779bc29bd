"""Sample texts from a causal language model: what every engine shares, and the engine transformers.

A text is determined by the model, the prompt and its own seed, not by the batch it was computed in:
each text has a generator of its own, and the token drawn is the argmax of log-probability plus
Gumbel noise, which is a draw from the softmax (Gumbel, 1954; "the Gumbel-max trick"). What remains is
the rounding of batched matrix products, which can flip a near-tie if the batch size is changed.

The prompt is computed once and its key-value cache is shared by all the texts of that prompt.
Other engines (`vllm_generator`, `endpoint_generator`) have the same `generate`; all of them ask for a
text by the token ids of the same prompt and end it at the same tokens. Of the model's own
generation_config.json they take nothing but these tokens: a repetition penalty or a top_k that comes
with a model would change the texts, and the likelihoods that DPO compares.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from transformers import (
    AutoConfig,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
)

from expandr_core.errors import DataError
from expandr_core.generation.adapters import load_adapted
from expandr_core.generation.chat_templates import load_tokenizer
from expandr_core.generation.prompts import fitted_turn, prompt_ids, turn_end_id
from expandr_core.generation.thoughts import (
    known_markers,
    opened_by,
    remove_thoughts,
    without_special,
)
from expandr_core.options.generation import ChatOptions, Prompt, SamplingOptions
from expandr_core.runtime.device import run_device

NOT_FINITE = (
    "the language model's logits are not finite (NaN or infinity), so no text can be drawn: its "
    "weights are broken, or overflow in the precision it runs in; download the model, or train its "
    "adapter, anew (with a lower dpo.learning_rate), or run it in another precision"
)


@dataclass(frozen=True)
class Request:
    """One prompt and the texts wanted for it.

    Attributes:
        prompt: name of the prompt.
        query: what is asked.
        passage: the relevant passage, for the prompts that show one.
        seeds: one per text.
        sampling_temperatures: one per text; 0 is greedy.
    """

    prompt: Prompt
    query: str
    passage: str
    seeds: tuple[int, ...]
    sampling_temperatures: tuple[float, ...]


@dataclass(frozen=True)
class Completion:
    """One generated text, as decoded, without the turn's end.

    Attributes:
        finish_reason: "stop" if the model ended its turn, "length" if it was cut.
        tokens: number of generated tokens, the turn's end not counted.
        thoughts: whether the model wrote thoughts before it, which are left out.
    """

    text: str
    finish_reason: Literal["stop", "length"]
    tokens: int
    thoughts: bool = False


class Generator(Protocol):
    """What the expand stage needs from an engine."""

    def generate(
        self, requests: Sequence[Request], sampling: SamplingOptions, max_prompt_tokens: int
    ) -> Iterator[list[tuple[int, list[Completion]]]]:
        """Yield, batch by batch, the index of each request with its completions, in any order."""
        ...


class Codec:
    """What a model's folder says about prompts and texts: the same for every engine.

    Attributes:
        tokenizer: the model's.
        turn_end: the token that ends the assistant's turn.
        ends: all tokens that end a text, the model's own ends of sequence too.
    """

    def __init__(self, folder: Path, chat: ChatOptions | None = None):
        """Read a model's tokenizer and configuration from a local folder; `chat` is of its template."""
        self.tokenizer = load_tokenizer(folder, chat)
        self.turn_end = turn_end_id(self.tokenizer)
        self._opened = opened_by(self.tokenizer, prompt_ids(self.tokenizer, "a"))
        self._markers = known_markers(self.tokenizer)
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        self._context: int | None = getattr(config, "max_position_embeddings", None)
        settings = folder / "generation_config.json"
        if settings.is_file():  # the library refuses whole what it finds contradictory in it
            own = json.loads(settings.read_bytes()).get("eos_token_id")
        else:
            own = GenerationConfig.from_model_config(config).eos_token_id
        self.ends = {self.turn_end, *([own] if isinstance(own, int) else own or [])}

    def turns(
        self, requests: Sequence[Request], sampling: SamplingOptions, max_prompt_tokens: int
    ) -> list[tuple[str, list[int]]]:
        """Render each request: the user's turn, and the whole prompt as token ids.

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
            fitted_turn(self.tokenizer, r.prompt, r.query, r.passage, max_prompt_tokens)
            for r in requests
        ]

    def prompts(
        self, requests: Sequence[Request], sampling: SamplingOptions, max_prompt_tokens: int
    ) -> list[list[int]]:
        """Return only the token ids of `turns`."""
        return [ids for _, ids in self.turns(requests, sampling, max_prompt_tokens)]

    def completion(self, ids: list[int]) -> Completion:
        """Decode a text up to the first token that ends it; without one it was cut."""
        length = next((n for n, token in enumerate(ids) if token in self.ends), len(ids))
        text, thoughts = self.answer(without_special(self.tokenizer, ids[:length]))
        return Completion(text, "stop" if length < len(ids) else "length", length, thoughts)

    def answer(self, text: str) -> tuple[str, bool]:
        """Return a text without the thoughts before it, and whether there were any."""
        return remove_thoughts(text, self._opened, self._markers)


class _SeededSampling(LogitsProcessor):
    """Draw each row's next token with the row's own temperature and random generator.

    It raises DataError where no distribution is left, as a logit is NaN or infinite.

    The nucleus (Holtzman et al., 2020) is not sorted out: a token belongs to it if those that are more
    probable have less than `top_p` together, so a draw that does not is thrown away, and the row's next
    best taken. That is the same token, since noise does not depend on what is in the nucleus.
    """

    def __init__(
        self, seeds: Sequence[int], temperatures: Sequence[float], top_p: float, device: str
    ):
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        temperature = torch.tensor(temperatures, device=device)
        self.greedy = temperature == 0  # (rows,)
        self.temperature = temperature.masked_fill(self.greedy, 1.0)[:, None]
        self.top_p = top_p

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        logits = scores.float() / self.temperature  # (rows, vocabulary)
        noise = torch.empty_like(logits)
        for row, generator in enumerate(self.generators):
            noise[row].uniform_(torch.finfo(noise.dtype).tiny, 1, generator=generator)
        noisy = noise.log_().neg_().log_().neg_().add_(logits)  # Gumbel noise
        noisy[self.greedy] = logits[self.greedy]
        probabilities = logits.softmax(dim=-1)
        if not probabilities.isfinite().all():
            raise DataError(NOT_FINITE)
        rows = torch.arange(len(noisy), device=noisy.device)  # whose draw is to be looked at
        while self.top_p < 1 and len(rows):
            drawn = noisy[rows].argmax(dim=-1, keepdim=True)  # (looked at, 1)
            own = probabilities[rows]
            above = own.masked_fill(own <= own.gather(1, drawn), 0).sum(dim=-1)  # (looked at,)
            outside = above >= self.top_p
            rows = rows[outside]
            noisy[rows, drawn[outside, 0]] = -torch.inf
        return noisy


class TransformersGenerator:
    """A causal LM in this process, on a CPU or one GPU."""

    def __init__(
        self,
        folder: Path,
        device: str,
        adapter: Path | None = None,
        chat: ChatOptions | None = None,
    ):
        """Load the model from a local folder, with an adapter: bfloat16 on a GPU, float32 on a CPU."""
        self.device = run_device(device)
        self.codec = Codec(folder, chat)
        dtype = torch.float32 if self.device == "cpu" else torch.bfloat16
        self.model = load_adapted(folder, adapter, dtype).to(self.device).eval()
        self.pad = self.codec.tokenizer.pad_token_id
        if self.pad is None or self.pad >= self.model.get_input_embeddings().weight.shape[0]:
            self.pad = self.codec.turn_end

    def generate(
        self, requests: Sequence[Request], sampling: SamplingOptions, max_prompt_tokens: int
    ) -> Iterator[list[tuple[int, list[Completion]]]]:
        """Generate in batches of prompts of similar length, at most `batch_size` texts each."""
        prompts = self.codec.prompts(requests, sampling, max_prompt_tokens)
        order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
        batch: list[int] = []
        for index in order:
            texts = sum(len(requests[i].seeds) for i in [*batch, index])
            if batch and texts > sampling.batch_size:
                yield self._batch(batch, requests, prompts, sampling)
                batch = []
            batch.append(index)
        if batch:
            yield self._batch(batch, requests, prompts, sampling)

    @torch.inference_mode()
    def _batch(
        self,
        batch: list[int],
        requests: Sequence[Request],
        prompts: list[list[int]],
        options: SamplingOptions,
    ) -> list[tuple[int, list[Completion]]]:
        longest = max(len(prompts[index]) for index in batch)
        ids = torch.full((len(batch), longest), self.pad)  # (prompts, tokens), padded on the left
        mask = torch.zeros_like(ids)
        for row, index in enumerate(batch):
            ids[row, longest - len(prompts[index]) :] = torch.tensor(prompts[index])
            mask[row, longest - len(prompts[index]) :] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        samples = torch.tensor([len(requests[index].seeds) for index in batch])
        rows = torch.arange(len(batch)).repeat_interleave(samples).to(self.device)  # (texts,)
        shared = self.model(
            input_ids=ids[:, :-1],
            attention_mask=mask[:, :-1],
            position_ids=(mask.cumsum(1) - 1).clamp(min=0)[:, :-1],
            use_cache=True,
            logits_to_keep=1,
        ).past_key_values
        shared.reorder_cache(rows)
        sampling = _SeededSampling(
            [seed for index in batch for seed in requests[index].seeds],
            [t for index in batch for t in requests[index].sampling_temperatures],
            options.top_p,
            self.device,
        )
        output = self.model.generate(
            input_ids=ids[rows],
            attention_mask=mask[rows],
            past_key_values=shared,
            logits_processor=LogitsProcessorList([sampling]),
            generation_config=GenerationConfig(
                max_new_tokens=options.max_new_tokens,
                do_sample=False,
                use_cache=True,
                eos_token_id=sorted(self.codec.ends),
                pad_token_id=self.pad,
            ),
        )
        completions = [self.codec.completion(row) for row in output[:, longest:].tolist()]
        by_request = iter(completions)
        return [(index, [next(by_request) for _ in requests[index].seeds]) for index in batch]
