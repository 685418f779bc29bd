"""The rows that the retriever is trained on: query, positive, expansion, drawn hard negatives.

Training takes passes over the examples: one for each epoch and each expansion of a query. A pass
shows every example once, in an order of its own, with one expansion and newly drawn hard negatives.
No text is copied for it: a row is put together from Arrow columns when a batch asks for it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from expandr_core.errors import DataError
from expandr_core.hard_negatives import draw, read_pools
from expandr_core.joined import join_expansions, read_columns
from expandr_core.seeding import derive_seed

STAGE = "train_retriever"


class TrainingRows:
    """All rows of a training: row number = pass * examples + example.

    Attributes:
        examples: number of (query, positive) pairs.
        passes: how often each is shown.
        places: for hard negatives in each row; as many as any example can fill.
        pools: what hard negatives are drawn from, and the numbers that stand for ids.
        expansions: for each sample an Arrow array (examples,) of texts; None to train without.
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
            seed: the run's seed.

        Raises:
            DataError: if there is no example, or one without expansion or mined negatives.
        """
        table = read_columns(path, ["query_id", "query", "positive_id", "positive"])
        self.table = table
        self.examples = len(table["query_id"])
        if not self.examples:
            raise DataError("no example to train the retriever on; give it a share of the queries")
        self.passes = epochs * expansions_per_query
        self.hard_negatives = hard_negatives
        self.seed = seed
        self.pools = read_pools(path, mined)
        self.places = min(hard_negatives, int(self.pools.size.max()))
        self.expansions: list[Any] | None = None
        if expansions is not None:
            self.expansions = join_expansions(expansions, table["query_id"], expansions_per_query)

    def order(self) -> NDArray[np.int64]:
        """Return all row numbers in the order of training, pass by pass.

        The order within a pass is that of a hash of the ids: no other example matters for it.
        """
        queries, positives = (self.table[name].to_pylist() for name in ("query_id", "positive_id"))
        passes = []
        for number in range(self.passes):
            hashes = [
                derive_seed(STAGE, self.seed, "order", number, query_id, positive_id)
                for query_id, positive_id in zip(queries, positives, strict=True)
            ]
            passes.append(np.argsort(np.array(hashes), kind="stable") + number * self.examples)
        return np.concatenate(passes)

    def row(self, number: int) -> dict[str, Any]:
        """Put one row together.

        Returns:
            The texts, in the order that the loss expects them, and `label` (3 + places):
            the query's number, 1 if it has an expansion, the numbers of positive and hard
            negatives, -1 for an empty place. Where there is no text, that of the query or of the
            positive stands in, and the loss leaves it out.
        """
        turn, example = divmod(number, self.examples)
        query, positive = self._text("query", example), self._text("positive", example)
        row: dict[str, Any] = {"query": query, "positive": positive}
        expansion = ""
        if self.expansions is not None:
            expansion = self.expansions[turn % len(self.expansions)][example].as_py()
            row["expansion"] = expansion or query
        places = [int(self.pools.first[example]) + place for place in self._draw(example, turn)]
        for place in range(self.places):
            there = place < len(places)
            text = self.pools.texts[places[place]].as_py() if there else positive
            row[f"negative_{place + 1}"] = text
        numbers = [int(self.pools.numbers[place]) for place in places]
        row["label"] = [
            int(self.pools.query_numbers[example]),
            int(bool(expansion)),
            int(self.pools.positive_numbers[example]),
            *numbers,
            *[-1] * (self.places - len(numbers)),
        ]
        return row

    def _text(self, name: str, example: int) -> str:
        return self.table[name][example].as_py()

    def _draw(self, example: int, turn: int) -> list[int]:
        ids = self._text("query_id", example), self._text("positive_id", example)
        return draw(
            int(self.pools.size[example]),
            self.hard_negatives,
            turn,
            lambda cycle: derive_seed(STAGE, self.seed, "negatives", *ids, cycle),
        )

    def counts(self) -> dict[str, float]:
        """Count what the manifest shows."""
        short = np.maximum(self.hard_negatives - self.pools.size, 0)
        counts: dict[str, float] = {
            "examples": self.examples,
            "queries": len(np.unique(self.pools.query_numbers)),
            "rows": self.examples * self.passes,
            "dropped/hard negatives that are positives or repeated": self.pools.dropped,
            "hard negative places left empty": int(short.sum()) * self.passes,
        }
        if self.expansions is not None:
            texts = pa.table({"text": pa.chunked_array(self.expansions)})
            empty = texts.filter(pc.field("text") == "").num_rows
            counts["rows with an empty expansion"] = empty * (self.passes // len(self.expansions))
        return counts
