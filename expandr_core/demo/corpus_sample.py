"""A random sample of a corpus that may be far larger than memory."""

from pathlib import Path
from random import Random
from typing import NamedTuple


class Passage(NamedTuple):
    """A passage without its id; the title may be empty."""

    title: str
    text: str

    @property
    def whole(self) -> str:
        """Title and text, as everywhere."""
        return f"{self.title} {self.text}".strip()


def sample_passages(corpus: Path, count: int, random: Random) -> list[Passage]:
    """Draw passages without replacement, streaming; all of them if there are no more than `count`.

    Args:
        corpus: a corpus.parquet (passage_id, title, text).
        count: how many to draw.
        random: source of the draw.

    Returns:
        In the order of the corpus, without the empty ones.
    """
    import pyarrow.parquet as pq

    file = pq.ParquetFile(corpus)
    rows = file.metadata.num_rows
    wanted = sorted(random.sample(range(rows), min(count, rows)))
    passages: list[Passage] = []
    start = position = 0
    for batch in file.iter_batches(columns=["title", "text"]):
        end = start + batch.num_rows
        first = position
        while position < len(wanted) and wanted[position] < end:
            position += 1
        chosen = batch.take([index - start for index in wanted[first:position]])
        passages += [Passage(row["title"], row["text"]) for row in chosen.to_pylist()]
        start = end
    return [passage for passage in passages if passage.whole]
