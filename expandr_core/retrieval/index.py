"""An encoded corpus: its ids, and its vectors on disk, which are read block by block."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from expandr_core.encoders.encode import Vectors
from expandr_core.errors import DataError
from expandr_core.retrieval.rounding import Precision, lengths_or_more
from expandr_core.runtime.cores import shares_of, work_on_all

if TYPE_CHECKING:
    from torch import Tensor

Positions = NDArray[np.int64]
_ROWS_AT_ONCE = 2048  # passages whose copies in double precision are multiplied
_SAMPLED_TOGETHER = 16  # passages
_COPIED_AT_ONCE = 512  # passages whose copies stay in a processor's cache


class Block(NamedTuple):
    """Some passages in their order.

    Attributes:
        start: position of the first in the index.
        vectors: (passages of the block, dimensions)
        lengths: (passages of the block,) of the stored vectors, in single precision, or more where
            squares underflow.
        rounding: length of the greatest difference between a stored vector and its row here, or more.
    """

    start: int
    vectors: "Tensor"
    lengths: "Tensor"
    rounding: float


class Index(NamedTuple):
    """An encoded corpus.

    Attributes:
        passage_ids: (passages,)
        shards: the vectors in order, as arrays or as files of `numpy.save`; each (passages of the
            shard, dimensions)
        starts: (shards,) position of each shard's first passage.
        dimensions: size of the vectors.
        tie_order: (passages,), see `tie_order`.
        devices: where it is searched; each takes a share.
    """

    passage_ids: pa.Array
    shards: Sequence[Path | Vectors]
    starts: Positions
    dimensions: int
    tie_order: Positions
    devices: tuple[str, ...] = ("cpu",)

    def opened(self, number: int) -> "Tensor":
        """Return the vectors of a shard, whose pages are read when they are touched."""
        import torch

        shard = self.shards[number]
        return torch.from_numpy(np.load(shard, mmap_mode="c") if isinstance(shard, Path) else shard)

    def blocks(
        self,
        size: int,
        devices: Sequence[str],
        precision: Precision = "float32",
        threads: Executor | None = None,
    ) -> Iterator[Block]:
        """Read the vectors in order, at most `size` at once.

        Args:
            size: most passages of a block.
            devices: where the blocks are.
            precision: what vectors are rounded to.
            threads: what reads the parts of a block side by side.

        Yields:
            Blocks, on the devices in turn; each overwrites that of one turn before. A device that is
            named twice has two, so that one can be read while the other is searched.

        Raises:
            DataError: if a vector is not finite, as those of a diverged retriever.
        """
        import torch

        count = len(self.passage_ids)
        size, kind = min(size, count), getattr(torch, precision)
        buffers = [
            (
                torch.empty((size, self.dimensions), dtype=kind, device=at),
                torch.empty(size, device=at),
            )
            for at in devices
        ]
        pieces = self._pieces(size)

        def fill(piece: "Tensor", vectors: "Tensor", lengths: "Tensor") -> float:
            """Round some vectors; return the greatest difference from what is stored."""
            piece = piece.to(vectors.device).float()
            vectors[:], lengths[:] = piece, lengths_or_more(piece)
            return 0.0 if piece.dtype == kind else float(lengths_or_more(piece - vectors).max())

        for number, start in enumerate(range(0, count, size)):
            length, filled = min(size, count - start), 0
            vectors, lengths = (each[:length] for each in buffers[number % len(devices)])
            parts = []
            while filled < length:
                piece = next(pieces)
                rows = slice(filled, filled + len(piece))
                parts.append((piece, vectors[rows], lengths[rows]))
                filled += len(piece)
            each = (threads.map if threads else map)(fill, *zip(*parts, strict=True))
            block = Block(start, vectors, lengths, max(each))
            require_finite(block.lengths.cpu().numpy())
            yield block

    def _pieces(self, size: int) -> Iterator["Tensor"]:
        """Cut the vectors small, after every `size`, and at the ends of shards."""
        done = 0
        for number, start in enumerate(self.starts.tolist()):
            shard = self.opened(number)  # one at a time, as its pages count as memory
            while done < start + len(shard):
                most = min(size - done % size, _COPIED_AT_ONCE)
                piece = shard[done - start : done - start + most]
                done += len(piece)
                yield piece

    def sample(self, count: int) -> "Index":
        """Return an index in memory of about so many passages: a few side by side, from everywhere."""
        every = max(1, len(self.passage_ids) * _SAMPLED_TOGETHER // count)
        kept, vectors = [], []
        for number, start in enumerate(self.starts.tolist()):
            shard = self.opened(number).numpy()
            rows = np.arange(len(shard))
            rows = rows[rows % every < _SAMPLED_TOGETHER]
            kept.append(rows + start)
            vectors.append(shard[rows])
        ids = self.passage_ids.take(pa.array(np.concatenate(kept)))
        return index_in_memory(ids, np.concatenate(vectors))._replace(devices=self.devices)

    def products(
        self, queries: Vectors, rows: Positions, positions: Positions
    ) -> NDArray[np.float64]:
        """Return the inner products of some pairs; equal vectors have equal products.

        A matrix product does not guarantee that: the order of its sums depends on a row's position.

        Args:
            queries: (queries, dimensions)
            rows: (pairs,) row of each pair's query.
            positions: (pairs,) position of each pair's passage.

        Returns:
            (pairs,), computed in double precision.
        """
        import torch

        expect_sparse()
        asked, rows = _distinct(rows, len(queries))
        # numpy's memory comes in huge pages; without them scattered reads take a fifth longer
        doubles = torch.from_numpy(queries[asked].astype(np.float64))
        in_order = torch.from_numpy(positions).int().sort(stable=True)  # on all cores, unlike numpy
        ordered, by_position = map(torch.Tensor.numpy, in_order)
        products = np.empty(len(positions))
        firsts = np.flatnonzero(np.diff(ordered, prepend=-1))  # pairs: the first of each passage
        found, ends = ordered[firsts], np.append(firsts, len(ordered))
        edges = np.searchsorted(found, [*self.starts.tolist(), len(self.passage_ids)])

        def multiply(share: slice) -> None:
            own_edges = edges.clip(share.start, share.stop).tolist()
            copies = torch.from_numpy(np.empty((min(_ROWS_AT_ONCE, len(found)), self.dimensions)))
            for number, (begin, stop) in enumerate(pairwise(own_edges)):
                if begin == stop:
                    continue
                shard = self.opened(number)
                for first in range(begin, stop, _ROWS_AT_ONCE):
                    end = min(first + _ROWS_AT_ONCE, stop)
                    stored = torch.from_numpy(found[first:end] - self.starts[number])
                    pairs = by_position[ends[first] : ends[end]]
                    passages = copies[: end - first].copy_(shard.index_select(0, stored))
                    own, columns = ends[first : end + 1] - ends[first], rows[pairs]
                    products[pairs] = sampled(
                        passages, doubles, torch.from_numpy(own), torch.from_numpy(columns)
                    )

        if len(found):
            work_on_all(multiply, shares_of(len(found)))
        return products


def _distinct(numbers: Positions, count: int) -> tuple[Positions, Positions]:
    """Return the distinct numbers, all below `count`, ascending, and each number's place among them.

    >>> _distinct(np.array([7, 3, 7]), 9)
    (array([3, 7]), array([1, 0, 1]))
    """
    used = np.zeros(count, bool)
    used[numbers] = True
    return np.flatnonzero(used), (used.cumsum() - 1)[numbers]


def sampled(passages: "Tensor", queries: "Tensor", ends: "Tensor", columns: "Tensor") -> "Tensor":
    """Multiply pairs of rows, given as a sparse matrix: where its rows end, and its columns."""
    import torch

    pairs = _sparse(passages.new_zeros(len(columns)), ends, columns, (len(passages), len(queries)))
    return torch.sparse.sampled_addmm(pairs, passages, queries.T, beta=0).values()


def _sparse(
    values: "Tensor", ends: "Tensor", columns: "Tensor", shape: tuple[int, int]
) -> "Tensor":
    import torch

    return torch.sparse_csr_tensor(ends, columns, values, shape, check_invariants=False)


@cache
def expect_sparse() -> None:
    """Let torch warn once, unheard, that sparse matrices are new; threads cannot ignore warnings."""
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        none = torch.zeros(1, dtype=torch.int64)
        _sparse(torch.zeros(0), none, none[:0], (0, 0))


def require_finite(lengths: NDArray[np.floating]) -> None:
    """Refuse vectors whose lengths are no numbers.

    Raises:
        DataError: if one is not finite.
    """
    if not np.isfinite(lengths).all():
        raise DataError(
            "vectors or their products are not finite numbers; the retriever may have diverged in "
            "training: lower its learning rate"
        )


def open_index(folders: Iterable[Path], device: str = "cpu") -> Index:
    """Open the shards of an encoded corpus; their folders must exist as long as the index is used.

    Args:
        folders: the shards.
        device: where the index is searched: "cpu", or "cuda" for all GPUs.
    """
    import torch

    gpus = tuple(f"cuda:{number}" for number in range(torch.cuda.device_count()))
    ids, files, starts, shape = [], [], [0], (0, 0)
    for folder in folders:
        ids.append(pq.read_table(folder / "passages.parquet", columns=["passage_id"])["passage_id"])
        files.append(folder / "vectors.npy")
        shape = np.load(files[-1], mmap_mode="r").shape
        assert len(ids[-1]) == shape[0]
        starts.append(starts[-1] + shape[0])
    passage_ids = pa.chunked_array([chunk for each in ids for chunk in each.chunks])
    joined = passage_ids.combine_chunks()
    devices = gpus if device == "cuda" else (device,)
    return Index(joined, files, np.array(starts[:-1]), shape[1], tie_order(joined), devices)


def index_in_memory(passage_ids: pa.Array, vectors: Vectors) -> Index:
    """Make an index of vectors (passages, dimensions) in memory."""
    start = np.zeros(1, np.int64)
    return Index(passage_ids, [vectors], start, vectors.shape[1], tie_order(passage_ids))


def tie_order(passage_ids: pa.Array) -> Positions:
    """Return each passage's position in the order of ties: the greatest id (by bytes) is first.

    >>> tie_order(pa.array(["a", "c", "b"])).tolist()
    [2, 0, 1]
    """
    positions = np.arange(len(passage_ids))
    ascending = pc.call_function("less", [passage_ids[:-1], passage_ids[1:]])
    if ascending.to_numpy(False).all():  # as in most corpora
        return positions[::-1].copy()
    table = pa.table({"passage_id": passage_ids, "position": positions})
    order = np.empty_like(positions)
    order[table.sort_by([("passage_id", "descending")])["position"].to_numpy()] = positions
    return order
