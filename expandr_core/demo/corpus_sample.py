"""A random sample of a corpus that may be far larger than memory."""

from pathlib import Path
from random import Random

from expandr_core.records import Passage


def sample_passages(corpus: Path, count: int, random: Random) -> list[Passage]:
    """Stream through a corpus and draw passages without replacement.

    Args:
        corpus: a corpus.parquet (passage_id, title, text).
        count: passages to draw; all of them if the corpus has fewer.
        random: source of the draw.

    Returns:
        The drawn passages in the order of the corpus, without the empty ones.
    """
    import pyarrow.parquet as pq

    file = pq.ParquetFile(corpus)
    rows = file.metadata.num_rows
    drawn = sorted(random.sample(range(rows), min(count, rows)))
    passages: list[Passage] = []
    start = position = 0
    for batch in file.iter_batches(columns=list(Passage._fields)):
        end = start + batch.num_rows
        first = position
        while position < len(drawn) and drawn[position] < end:
            position += 1
        chosen = batch.take([index - start for index in drawn[first:position]])
        passages += [Passage(**row) for row in chosen.to_pylist()]
        start = end
    return [passage for passage in passages if passage.content]
