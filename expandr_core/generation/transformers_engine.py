"""The engine transformers: texts sampled from a causal language model in this process.

A text is determined by the model, the prompt and its seed, not by the batch it was computed in (see
`sampling`). Only the rounding of batched matrix products remains, which can flip a near-tie when the
batch changes.

The prompt is computed once; all its texts share what was computed. A finished text makes room for the
next in the batch.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from expandr_core.generation.adapters import load_adapted
from expandr_core.generation.engine import Codec, Completed, Request
from expandr_core.generation.precision import writing_precision
from expandr_core.generation.rows import Rows, join, joinable
from expandr_core.generation.sampling import Sampler
from expandr_core.options.generation import ChatOptions, Precision, SamplingOptions
from expandr_core.runtime.device import run_device

SMALL = 300_000_000  # parameters
MANY = 1 / 8


@dataclass
class _Text:
    request: int
    sample: int
    seed: int
    sampling_temperature: float
    ids: list[int] = field(default_factory=list)
    finished: bool = False


class TransformersGenerator:
    """A causal LM in this process, on a CPU or one GPU."""

    def __init__(
        self,
        folder: Path,
        device: str,
        adapter: Path | None = None,
        chat: ChatOptions | None = None,
        batch_size: int = 0,
        precision: Precision = "auto",
    ):
        """Load a model and its adapter from local folders; the options say what 0 and "auto" mean."""
        self.device = run_device(device)
        self.codec = Codec(folder, chat)
        self.precision = writing_precision(folder, self.device, precision)
        model = load_adapted(folder, adapter, getattr(torch, self.precision))
        self.model = model.to(self.device).eval()
        self.batch_size = batch_size or (256 if model.num_parameters() < SMALL else 64)

    def generate(
        self, requests: Sequence[Request], sampling: SamplingOptions, max_prompt_tokens: int
    ) -> Iterator[Completed]:
        """Generate at most `batch_size` texts at once, those of shorter prompts first."""
        prompts = [p.ids for p in self.codec.prompts(requests, sampling, max_prompt_tokens)]
        texts: dict[int, list[_Text]] = {}  # finished, by request
        for text in self._write(_Prompts(self, requests, prompts), sampling):
            own = texts.setdefault(text.request, [])
            own.append(text)
            if len(own) == len(requests[text.request].seeds):
                own = sorted(texts.pop(text.request), key=lambda text: text.sample)
                yield [(text.request, [self.codec.completion(each.ids) for each in own])]

    @torch.inference_mode()
    def _write(self, prompts: "_Prompts", options: SamplingOptions) -> Iterator[_Text]:
        """Write all texts; yield each when it is finished."""
        sampler = Sampler(options.top_p)
        texts: list[_Text] = []  # in the batch, a row each
        rows: Rows | None = None
        while True:
            unfinished = [row for row, text in enumerate(texts) if not text.finished]
            if len(texts) - len(unfinished) >= MANY * len(texts):
                parts = [(rows, unfinished)] if rows and unfinished else []
                texts = [texts[row] for row in unfinished]
                if not texts or (rows and joinable(rows.cache)):
                    for own, row, text in prompts.enter(self.batch_size - len(texts)):
                        if not parts or parts[-1][0] is not own:
                            parts.append((own, []))
                        parts[-1][1].append(row)
                        texts.append(text)
                if not texts:
                    return
                rows = join(parts)
            assert rows
            tokens = sampler.draw(
                rows.logits(self.model),
                [text.seed for text in texts],
                [len(text.ids) for text in texts],
                [text.sampling_temperature for text in texts],
            )
            rows.last = tokens[:, None]
            for text, token in zip(texts, tokens.tolist(), strict=True):
                if not text.finished:
                    text.ids.append(token)
                    ends = token in self.codec.ends
                    text.finished = ends or len(text.ids) == options.max_new_tokens
                    if text.finished:
                        yield text


class _Prompts:
    """Prompts, the shorter ones first, each computed just before the first of its texts is written."""

    def __init__(
        self,
        generator: TransformersGenerator,
        requests: Sequence[Request],
        prompts: Sequence[Sequence[int]],
    ):
        self._model, self._device = generator.model, generator.device
        self._requests, self._prompts = requests, prompts
        order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
        self._order = deque(order)
        self._texts: list[
            tuple[Rows, int, _Text]
        ] = []  # to write, with their prompts' batch and row

    def enter(self, most: int) -> list[tuple[Rows, int, _Text]]:
        """Return the next texts, `most` at most, with the batch of their prompts and the row in it."""
        while self._order and len(self._texts) < most:
            if self._texts and not joinable(self._texts[0][0].cache):
                break
            self._compute(most - len(self._texts))
        entering, self._texts = self._texts[:most], self._texts[most:]
        return entering

    def _compute(self, texts: int) -> None:
        """Compute all but the last token of the prompts of so many texts."""
        batch: list[int] = []
        while self._order and sum(len(self._requests[index].seeds) for index in batch) < texts:
            batch.append(self._order.popleft())
        # Pad on the left, (prompts, tokens), so that all texts begin in one column.
        longest = max(len(self._prompts[index]) for index in batch)
        ids = torch.full((len(batch), longest), self._prompts[batch[0]][0])
        mask = torch.zeros_like(ids)
        for row, index in enumerate(batch):
            begin = longest - len(self._prompts[index])
            ids[row, begin:] = torch.tensor(self._prompts[index])
            mask[row, begin:] = 1
        ids, mask = ids.to(self._device), mask.to(self._device)[:, :-1]
        cache = self._model(
            input_ids=ids[:, :-1],
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            use_cache=True,
            logits_to_keep=1,
        ).past_key_values
        rows = Rows(cache, mask, ids[:, -1:])
        for row, index in enumerate(batch):
            request = self._requests[index]
            texts_of = zip(request.seeds, request.sampling_temperatures, strict=True)
            self._texts += [
                (rows, row, _Text(index, sample, seed, temperature))
                for sample, (seed, temperature) in enumerate(texts_of)
            ]
