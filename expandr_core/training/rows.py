"""The rows that the retriever is trained on: query, expansion, positive, drawn hard negatives.

Training takes passes over the examples: one for each epoch and each expansion of a query. A pass
shows every example once, in an order of its own, with one expansion and newly drawn hard negatives.
No text is copied for it: a row is put together from Arrow columns when a batch asks for it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from expandr_core.data.tables import join_expansions, read_columns
from expandr_core.errors import DataError
from expandr_core.seeding import derive_seed, unit_interval
from expandr_core.training.hard_negatives import Numbers, draw, read_pools

STAGE = "train_retriever"
COLUMNS = ["query_id", "query", "source", "positive_id", "positive"]


class Row(NamedTuple):
    """One row of a batch.

    Attributes:
        texts: (3 + places,) query, expansion, positive, hard negatives; None where there is none.
        label: (3 + places,) the numbers of the query, of the positive and of the hard negatives in
            the texts' places; below 0 where there is no text, and 1 for an expansion.
    """

    texts: list[str | None]
    label: list[int]


class TrainingRows:
    """All rows of a training: row number = pass * examples + number of the training example.

    Attributes:
        examples: number of (query, positive) pairs that are trained on.
        passes: how often each is shown.
        places: for hard negatives in each row; as many as any example can fill.
        pools: what hard negatives are drawn from, and the numbers that stand for ids in the loss.
        expansions: for each sample an Arrow array of texts, one for each line of the file; none to
            train without.
        train: (examples,) lines of the file that are trained on.
        dev: lines of the file that are held out.
    """

    def __init__(
        self,
        path: Path,
        *,
        mined: Path | None,
        expansions: Iterable[Path] | None,
        expansions_per_query: int,
        epochs: int,
        hard_negatives: int,
        dev_share: float,
        seed: int,
    ):
        """Read the examples, and join by id what belongs to them.

        Args:
            path: the examples, a retriever.parquet.
            mined: a negatives.parquet, for examples that bring no negatives; or None.
            expansions: shards of expansions; None to train without.
            expansions_per_query: expansions used of each query. Without expansions there are as
                many passes, so that both trainings take the same number of steps.
            epochs: how often each example is shown with each of its expansions.
            hard_negatives: so many are drawn for a row.
            dev_share: about this share of the queries is held out, chosen by a hash of the id.
            seed: the run's seed.

        Raises:
            DataError: if no example is left to train on, the dev part is empty though it should not
                be, or a query has no expansion or no mined negatives.
        """
        self.table = table = read_columns(path, COLUMNS)
        query_ids = table["query_id"].to_pylist()
        held_out = np.array(
            [unit_interval(STAGE, seed, "dev", query_id) < dev_share for query_id in query_ids],
            dtype=bool,
        )
        self.train, self.dev = np.flatnonzero(~held_out), np.flatnonzero(held_out)
        self.examples = len(self.train)
        if not self.examples:
            raise DataError(
                "no example to train the retriever on; give it a share of the queries, or lower "
                "training.held_out_share"
            )
        if dev_share and not len(self.dev):
            raise DataError(
                f"training.held_out_share ({dev_share}) holds out none of {len(query_ids)} training "
                "examples; raise it, or set it to 0"
            )
        self.passes = epochs * expansions_per_query
        self.hard_negatives = hard_negatives
        self.seed = seed
        self.pools = read_pools(path, mined)
        self.places = min(hard_negatives, int(self.pools.size[self.train].max()))
        self.expansions: list[Any] = []
        if expansions is not None:
            self.expansions = join_expansions(expansions, table["query_id"], expansions_per_query)

    @property
    def width(self) -> int:
        """The number of texts and labels in a row."""
        return 3 + self.places

    def order(self) -> NDArray[np.int64]:
        """Return all row numbers in the order of training, pass by pass.

        The order within a pass is that of a hash of the ids: no other example matters for it.
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
        """Return a number of the source of each training example, (examples,)."""
        encoded = self.table["source"].dictionary_encode(null_encoding="encode")
        return encoded.indices.to_numpy().astype(np.int64)[self.train]

    def row(self, number: int) -> Row:
        """Put one row together."""
        turn, example = divmod(number, self.examples)
        line = int(self.train[example])
        expansion = ""
        if self.expansions:
            expansion = self.expansions[turn % len(self.expansions)][line].as_py()
        places = [int(self.pools.first[line]) + place for place in self._draw(line, turn)]
        empty = self.places - len(places)
        return Row(
            texts=[
                self._text("query", line),
                expansion or None,
                self._text("positive", line),
                *(self.pools.texts[place].as_py() for place in places),
                *[None] * empty,
            ],
            label=[
                int(self.pools.query_numbers[line]),
                1 if expansion else -1,
                int(self.pools.positive_numbers[line]),
                *(int(self.pools.numbers[place]) for place in places),
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
        """Count what the manifest shows."""
        short = np.maximum(self.hard_negatives - self.pools.size[self.train], 0)
        counts: dict[str, float] = {
            "examples": self.examples,
            "queries": len(np.unique(self.pools.query_numbers[self.train])),
            "rows": self.examples * self.passes,
            "dropped/hard negatives that are positives or repeated": self.pools.dropped,
            "hard negative places left empty": int(short.sum()) * self.passes,
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

    With sources, all rows of a batch are from one source as long as there are enough of them: rows
    are taken in order, each is put to those of its source, and whenever a source has enough for a
    batch, that batch is next. What is left of the sources at the end makes mixed batches, in order.

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
    """Return the places of the rows in the order in which `batches_of` takes them.

    A stable sort by source lines up each source's rows; a row whose batch becomes full counts by the
    place of the batch's last row, the others come after all.
    """
    sorted_rows = np.argsort(sources, kind="stable")
    _, starts, sizes = np.unique(sources[sorted_rows], return_index=True, return_counts=True)
    within = np.arange(len(sources)) - np.repeat(starts, sizes)
    last = np.repeat(starts, sizes) + within // batch_size * batch_size + batch_size - 1
    full = last < np.repeat(starts + sizes, sizes)
    when = np.where(full, sorted_rows[np.minimum(last, len(sources) - 1)], len(sources))
    return sorted_rows[np.lexsort((sorted_rows, when))]
