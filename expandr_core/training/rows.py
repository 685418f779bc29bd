"""The rows that the retriever is trained on: query, expansion, positive, drawn hard negatives.

Training makes passes over the examples: one for each epoch and each expansion of a query. A pass shows
every example once, in its own order, with one expansion and newly drawn hard negatives. No text is
copied for that: a row is assembled from Arrow columns when a batch needs it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from expandr_core.data.tables import join_expansions, read_columns
from expandr_core.errors import DataError
from expandr_core.options.training import RetrieverTrainingOptions
from expandr_core.seeding import derive_seed, unit_interval
from expandr_core.training.hard_negatives import Numbers, draw, read_pools

STAGE = "train_retriever"
COLUMNS = ["query_id", "query", "source", "positive_id", "positive"]


class Row(NamedTuple):
    """One row of a batch.

    Attributes:
        texts: (3 + slots,) query, expansion, positive, hard negatives; None where there is no text.
        label: (3 + slots,) for each text the number of its query or passage, 1 for an expansion, and
            -1 where there is no text.
    """

    texts: list[str | None]
    label: list[int]


class Rows(Protocol):
    """The rows of a training."""

    @property
    def width(self) -> int:
        """The number of texts and labels in a row."""
        ...

    def batches(self, options: RetrieverTrainingOptions) -> list[NDArray[np.int64]]:
        """Return the row numbers of each batch, in the order of training."""
        ...

    def row(self, number: int) -> Row:
        """Assemble one row."""
        ...


class TrainingRows:
    """All rows of a training: row number = pass * examples + number of the training example.

    Attributes:
        examples: number of (query, positive) pairs to train on.
        passes: how often each is shown.
        slots: for hard negatives in each row; as many as any example can fill.
        pools: the hard negatives to draw from, and the numbers that stand for ids in the loss.
        expansions: for each sample an Arrow array of texts, one for each line of the file; empty to
            train without expansions.
        train: (examples,) lines of the file to train on.
        dev: lines of the file that are held out.
    """

    def __init__(
        self,
        path: Path,
        mined: Path | None,
        expansions: Iterable[Path] | None,
        options: RetrieverTrainingOptions,
        seed: int,
    ):
        """Read the examples, and join their expansions and mined negatives by id.

        Args:
            path: the examples, a retriever.parquet.
            mined: a negatives.parquet, for examples without negatives; or None.
            expansions: shards of expansions, or None to train without. Without expansions there are as
                many passes, so that both trainings take the same number of steps.
            options: options of the training; a hash of the id decides which queries are held out.
            seed: seed of the run.

        Raises:
            DataError: if no example is left to train on, dev_share holds out no query, or a query has
                no expansion or no mined negatives.
        """
        self.table = table = read_columns(path, COLUMNS)
        query_ids = table["query_id"].to_pylist()
        draws = [unit_interval(STAGE, seed, "dev", query_id) for query_id in query_ids]
        held_out = np.array(draws, dtype=float) < options.held_out_share
        self.train, self.dev = np.flatnonzero(~held_out), np.flatnonzero(held_out)
        self.examples = len(self.train)
        if not self.examples:
            raise DataError(
                "no example to train the retriever on; give it a share of the queries, or lower "
                "training.held_out_share"
            )
        if options.held_out_share and not len(self.dev):
            raise DataError(
                f"training.held_out_share ({options.held_out_share}) holds out none of {len(query_ids)} "
                "training examples; raise it, or set it to 0"
            )
        self.passes = options.epochs * options.expansions_per_query
        self.hard_negatives = options.hard_negatives
        self.seed = seed
        self.pools = read_pools(path, mined)
        self.slots = min(self.hard_negatives, int(self.pools.size[self.train].max()))
        self.expansions: list[Any] = []
        if expansions is not None:
            samples = options.expansions_per_query
            self.expansions = join_expansions(expansions, table["query_id"], samples)

    @property
    def width(self) -> int:
        """The number of texts and labels in a row."""
        return 3 + self.slots

    def batches(self, options: RetrieverTrainingOptions) -> list[NDArray[np.int64]]:
        """Return the row numbers of each batch, in the order of training."""
        order = self.order()
        sources = self.sources()[order % self.examples] if options.batches == "by_source" else None
        return batches_of(order, options.batch_size, sources)

    def order(self) -> NDArray[np.int64]:
        """Return all row numbers in the order of training, pass by pass.

        A pass is ordered by a hash of the ids, so no other example influences where one comes.
        """
        queries, positives = (
            self.table[name].take(pa.array(self.train)).to_pylist()
            for name in ("query_id", "positive_id")
        )
        passes = []
        for number in range(self.passes):
            hashes = [
                derive_seed(STAGE, self.seed, "order", number, query_id, positive_id)
                for query_id, positive_id in zip(queries, positives, strict=True)
            ]
            passes.append(np.argsort(np.array(hashes), kind="stable") + number * self.examples)
        return np.concatenate(passes)

    def sources(self) -> Numbers:
        """Return the number of each training example's source, (examples,)."""
        encoded = self.table["source"].dictionary_encode(null_encoding="encode")
        return encoded.indices.to_numpy().astype(np.int64)[self.train]

    def row(self, number: int) -> Row:
        """Assemble one row."""
        turn, example = divmod(number, self.examples)
        line = int(self.train[example])
        expansion = ""
        if self.expansions:
            expansion = self.expansions[turn % len(self.expansions)][line].as_py()
        entries = [int(self.pools.first[line]) + entry for entry in self._draw(line, turn)]
        empty = self.slots - len(entries)
        return Row(
            texts=[
                self._text("query", line),
                expansion or None,
                self._text("positive", line),
                *(self.pools.texts[entry].as_py() for entry in entries),
                *[None] * empty,
            ],
            label=[
                int(self.pools.query_numbers[line]),
                1 if expansion else -1,
                int(self.pools.positive_numbers[line]),
                *(int(self.pools.numbers[entry]) for entry in entries),
                *[-1] * empty,
            ],
        )

    def _text(self, name: str, line: int) -> str:
        return self.table[name][line].as_py()

    def _draw(self, line: int, turn: int) -> list[int]:
        ids = self._text("query_id", line), self._text("positive_id", line)
        return draw(
            int(self.pools.size[line]),
            self.hard_negatives,
            turn,
            lambda cycle: derive_seed(STAGE, self.seed, "negatives", *ids, cycle),
        )

    def counts(self) -> dict[str, float]:
        """Return the counts for the manifest."""
        short = np.maximum(self.hard_negatives - self.pools.size[self.train], 0)
        counts: dict[str, float] = {
            "examples": self.examples,
            "queries": len(np.unique(self.pools.query_numbers[self.train])),
            "rows": self.examples * self.passes,
            "dropped/hard negatives that are positives or repeated": self.pools.dropped,
            "hard negative slots left empty": int(short.sum()) * self.passes,
        }
        if len(self.dev):
            counts["dev queries"] = len(np.unique(self.pools.query_numbers[self.dev]))
        if self.expansions:
            lines = pa.array(self.train)
            texts = pa.table({"text": pa.chunked_array([of.take(lines) for of in self.expansions])})
            empty = texts.filter(pc.field("text") == "").num_rows
            counts["rows with an empty expansion"] = empty * (self.passes // len(self.expansions))
        return counts


def batches_of(
    order: NDArray[np.int64], batch_size: int, sources: NDArray[np.int64] | None = None
) -> list[NDArray[np.int64]]:
    """Cut rows into batches; only the last one can be smaller.

    With sources, all rows of a batch come from one source while it has enough of them: rows are taken
    in order and collected by source, and as soon as a source has enough for a batch, that batch is
    next. The remaining rows of all sources form mixed batches at the end, in order.

    Args:
        order: (rows,) in the order of training.
        batch_size: rows of a batch.
        sources: (rows,) the source of each row, in the same order; None to mix them.

    >>> batches_of(np.arange(5), 2)
    [array([0, 1]), array([2, 3]), array([4])]
    >>> batches_of(np.arange(5), 2, np.array([0, 1, 1, 0, 0]))
    [array([1, 2]), array([0, 3]), array([4])]
    """
    if sources is not None:
        order = order[_by_source(sources, batch_size)]
    return np.split(order, range(batch_size, len(order), batch_size))


def _by_source(sources: NDArray[np.int64], batch_size: int) -> NDArray[np.int64]:
    """Return the positions of the rows in the order in which `batches_of` takes them."""
    # a stable sort lines up the rows of each source; `within` counts them
    by_source = np.argsort(sources, kind="stable")
    _, starts, sizes = np.unique(sources[by_source], return_index=True, return_counts=True)
    within = np.arange(len(sources)) - np.repeat(starts, sizes)
    # a row's batch is complete at its last row, and so comes where that row was; rows of batches that
    # never become complete come after all others
    last = np.repeat(starts, sizes) + within // batch_size * batch_size + batch_size - 1
    full = last < np.repeat(starts + sizes, sizes)
    when = np.where(full, by_source[np.minimum(last, len(sources) - 1)], len(sources))
    return by_source[np.lexsort((by_source, when))]
