"""The engine transformers: texts sampled from a causal language model in this process.

A text is determined by the model, the prompt and its seed, not by the batch it was computed in: each
text has its own random generator, and the next token is the argmax of log-probability plus Gumbel
noise, which is a draw from the softmax (Gumbel, 1954; "the Gumbel-max trick"). Only the rounding of
batched matrix products remains, which can flip a near-tie when the batch size changes.

The prompt is computed once; all its texts share the key-value cache.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from expandr_core.errors import DataError
from expandr_core.generation.adapters import load_adapted
from expandr_core.generation.engine import NOT_FINITE, Codec, Completed, Request
from expandr_core.options.generation import ChatOptions, SamplingOptions
from expandr_core.runtime.device import run_device


class SeededSampling(LogitsProcessor):
    """Sample each row's next token with the row's own temperature and random generator.

    `generate` takes the argmax of what this returns, so it returns log-probabilities plus noise.

    The nucleus (Holtzman et al., 2020) is found without sorting: a token belongs to it if the tokens
    more probable than it have less than `top_p` together. A draw outside is discarded, and the row's
    next best taken. The result is the same token, since the noise does not depend on the nucleus.
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
        noisy = noise.log_().neg_().log_().neg_().add_(logits)  # logits + Gumbel noise
        noisy[self.greedy] = logits[self.greedy]
        probabilities = logits.softmax(dim=-1)
        if not probabilities.isfinite().all():
            raise DataError(NOT_FINITE)
        # Redraw the rows whose token lies outside the nucleus: mask the token, take the next best.
        rows = torch.arange(len(noisy), device=noisy.device)  # rows still to be checked
        while self.top_p < 1 and len(rows):
            drawn = noisy[rows].argmax(dim=-1, keepdim=True)  # (checked, 1)
            p = probabilities[rows]
            above = p.masked_fill(p <= p.gather(1, drawn), 0).sum(dim=-1)  # (checked,)
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
        batch_size: int = 64,
    ):
        """Load a model and its adapter from local folders: bfloat16 on a GPU, float32 on a CPU."""
        self.device, self.batch_size = run_device(device), batch_size
        self.codec = Codec(folder, chat)
        dtype = torch.float32 if self.device == "cpu" else torch.bfloat16
        self.model = load_adapted(folder, adapter, dtype).to(self.device).eval()
        self.pad = self.codec.tokenizer.pad_token_id
        if self.pad is None or self.pad >= self.model.get_input_embeddings().weight.shape[0]:
            self.pad = self.codec.turn_end

    def generate(
        self, requests: Sequence[Request], sampling: SamplingOptions, max_prompt_tokens: int
    ) -> Iterator[Completed]:
        """Generate in batches of prompts of similar length, at most `batch_size` texts each."""
        prompts = [p.ids for p in self.codec.prompts(requests, sampling, max_prompt_tokens)]
        order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
        batch: list[int] = []
        for index in order:
            texts = sum(len(requests[i].seeds) for i in [*batch, index])
            if batch and texts > self.batch_size:
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
    ) -> Completed:
        # Pad the prompts on the left, (prompts, tokens), so that all texts begin in one column.
        longest = max(len(prompts[index]) for index in batch)
        ids = torch.full((len(batch), longest), self.pad)
        mask = torch.zeros_like(ids)
        for row, index in enumerate(batch):
            ids[row, longest - len(prompts[index]) :] = torch.tensor(prompts[index])
            mask[row, longest - len(prompts[index]) :] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        # Compute all but the last token of each prompt, once, and repeat the cache for its texts.
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
        sampling = SeededSampling(
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
        completions = map(self.codec.completion, output[:, longest:].tolist())
        return [(index, [next(completions) for _ in requests[index].seeds]) for index in batch]
