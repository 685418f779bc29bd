"""Texts in progress, a row each: they leave a batch, enter it, and share what was computed of a prompt.

All rows end in the same column; a shorter one begins further right, after columns that the mask hides.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import (
    Cache,
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionLayer,
)

ROOM = 64  # columns


@dataclass
class Rows:
    """Rows of a batch.

    Attributes:
        cache: the keys and values, or other states, of all tokens but the last.
        mask: (rows, columns), 1 where the cache has a token of the row.
        last: (rows, 1), the last token of each row.
    """

    cache: Cache
    mask: torch.Tensor
    last: torch.Tensor

    def logits(self, model: Any) -> torch.Tensor:
        """Compute the last tokens; return the logits of the next, (rows, vocabulary)."""
        position = self.mask.sum(1, keepdim=True)
        self.mask = torch.cat([self.mask, torch.ones_like(self.last)], dim=1)
        output = model(
            input_ids=self.last,
            attention_mask=self.mask,
            position_ids=position,
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.logits[:, -1]


class _Columns(DynamicLayer):
    """Keys and values with room for more, so that a token's are written without copying the others'.

    With a window, the tensors begin at the first column that is still seen.
    """

    def __init__(
        self, keys: torch.Tensor, values: torch.Tensor, columns: int, window: int | None
    ) -> None:
        """Take keys and values that end with `ROOM` columns, of a batch of `columns`."""
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self.columns, self.sliding_window, self.is_sliding = columns, window, window is not None
        self._gone = columns + ROOM - keys.shape[-2]

    def seen(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the keys and values that the next token sees."""
        assert self.keys is not None and self.values is not None
        columns = slice(self._first() - self._gone, self.columns - self._gone)
        return self.keys[:, :, columns], self.values[:, :, columns]

    def _first(self) -> int:
        return 0 if self.sliding_window is None else max(self.columns - self.sliding_window + 1, 0)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the keys and values of the next column; return those that it sees."""
        assert self.keys is not None and self.values is not None
        seen = slice(self._first() - self._gone, self.columns - self._gone + 1)
        if seen.stop > self.keys.shape[-2]:
            room = (0, 0, 0, ROOM)
            self.keys = torch.nn.functional.pad(self.keys, room)
            self.values = torch.nn.functional.pad(self.values, room)
        self.keys[:, :, seen.stop - 1 : seen.stop] = key_states
        self.values[:, :, seen.stop - 1 : seen.stop] = value_states
        self.columns += 1
        return self.keys[:, :, seen], self.values[:, :, seen]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of columns that a token sees with its own, and the first of them."""
        return self.columns + query_length - self._first(), self._first()

    def get_seq_length(self) -> int:
        """Return the number of columns of the batch."""
        return self.columns


_JOINABLE = {
    _Columns,
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionLayer,
}


def joinable(cache: Cache) -> bool:
    """Tell whether rows of this kind of cache can enter a batch."""
    return all(type(layer) in _JOINABLE for layer in cache.layers)


def join(parts: Sequence[tuple[Rows, list[int]]]) -> Rows:
    """Put rows of several batches into one.

    Args:
        parts: batches, and which of their rows; if more than one, they must be `joinable`.
    """
    first = parts[0][0]
    masks = [part.mask[chosen] for part, chosen in parts]
    columns = max(int(mask.sum(1).max()) for mask in masks)
    if joinable(first.cache):
        cache = copy.copy(first.cache)
        cache.layers = [
            _join_layers([(part.cache.layers[number], chosen) for part, chosen in parts], columns)
            for number in range(len(first.cache.layers))
        ]
    else:
        [(_, chosen)] = parts
        columns = masks[0].shape[1]
        cache = copy.deepcopy(first.cache)
        cache.reorder_cache(torch.tensor(chosen))  # pyrefly: ignore[bad-argument-type]
    mask = torch.cat([_last_columns(mask, columns) for mask in masks])
    return Rows(cache, mask, torch.cat([part.last[chosen] for part, chosen in parts]))


def _join_layers(parts: Sequence[tuple[Any, list[int]]], columns: int) -> Any:
    first = parts[0][0]
    if isinstance(first, DummyLayer):
        return first
    if not isinstance(first, LinearAttentionLayer):
        window = first.sliding_window if first.is_sliding else None
        return _Columns(*_join_columns(parts, columns, window), columns, window)
    layer = copy.copy(first)
    for kind in ("conv_states", "recurrent_states"):
        states = {
            number: state
            if state is None
            else torch.cat([getattr(part, kind)[number][chosen] for part, chosen in parts])
            for number, state in getattr(first, kind).items()
        }
        setattr(layer, kind, states)
    if isinstance(layer, LinearAttentionAndFullAttentionLayer):
        keys, values = _join_columns(parts, columns, None)
        layer.keys, layer.values = keys[:, :, :columns], values[:, :, :columns]
    return layer


def _join_columns(
    parts: Sequence[tuple[Any, list[int]]], columns: int, window: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Join keys and values, with room behind those that the next token sees."""
    kept = columns if window is None else min(columns, window - 1)
    pairs = [
        layer.seen() if isinstance(layer, _Columns) else (layer.keys, layer.values)
        for layer, _ in parts
    ]
    rows = sum(len(chosen) for _, chosen in parts)
    joined = []
    for side in zip(*pairs, strict=True):
        _, heads, _, width = side[0].shape
        target = side[0].new_empty((rows, heads, kept + ROOM, width))
        begin = 0
        for tensor, (_, chosen) in zip(side, parts, strict=True):
            end, own = begin + len(chosen), min(tensor.shape[-2], kept)
            source = tensor[:, :, tensor.shape[-2] - own :]
            target[begin:end, :, : kept - own] = 0  # hidden, but a NaN would show through
            target[begin:end, :, kept - own : kept] = source[chosen]
            begin = end
        joined.append(target)
    return joined[0], joined[1]


def _last_columns(mask: torch.Tensor, columns: int) -> torch.Tensor:
    """Keep the last columns of a mask, or hide some before it."""
    return torch.nn.functional.pad(mask, (columns - mask.shape[1], 0))
