"""Which passages may be mined for which query, and their texts, which stay on disk until then."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from expandr_core.data.tables import positions_of
from expandr_core.encoders.vector_cache import Digests, digests_of
from expandr_core.errors import DataError
from expandr_core.records import Passage, passages_in
from expandr_core.training.hard_negatives import PASSAGES, Numbers

_EMPTY = -1
_OF_NO_POSITIVE = 0


def forbidden(
    examples: dict[str, Any], query_ids: Any, passage_ids: Any, contents: Digests
) -> tuple[Numbers, Numbers]:
    """Number the contents of positives, and pair queries with those of their own.

    Args:
        examples: columns query_id, positive_id and positive (the text).
        query_ids: (queries,)
        passage_ids: (passages,)
        contents: (passages, 2) digests of the passages' texts.

    Returns:
        The number of each passage's content (passages,), -1 if it is empty; and the sorted numbers of
        the forbidden pairs: position of the query in `query_ids` * PASSAGES + number of the content.
    """
    # a positive counts by its text, and by the text that the corpus has under its id
    owners = positions_of(examples["query_id"], query_ids)
    by_id = positions_of(examples["positive_id"], passage_ids)
    in_corpus = by_id >= 0
    texts, empty = digests_of(examples["positive"].to_pylist()), digests_of([""])
    known = np.concatenate([empty, texts, contents[by_id[in_corpus]]])

    # the same content has the same number; compare half of each digest first, as most are of no positive
    alike = np.flatnonzero(np.isin(contents[:, 0], known[:, 0]))
    every = np.concatenate([known, contents[alike]])
    _, which = np.unique(every, axis=0, return_inverse=True)
    which = 1 + which.reshape(-1)
    own, among = np.split(which, [len(known)])
    numbers = np.full(len(contents), _OF_NO_POSITIVE, np.int64)
    numbers[alike] = np.where(among == own[0], _EMPTY, among)
    pairs = np.concatenate([owners, owners[in_corpus]]) * PASSAGES + own[1:]
    return numbers, np.unique(pairs)


class Texts:
    """The texts of the passages of an index, as the encoder reads them."""

    def __init__(self, corpus: Path, passage_ids: Any, contents: Digests):
        """Find the passages in their corpus.

        Args:
            corpus: a corpus.parquet.
            passage_ids: (passages,) of the index.
            contents: (passages, 2) digests of their texts.

        Raises:
            DataError: if one is not in the corpus.
        """
        self._corpus, self._ids, self._contents = corpus, passage_ids, contents
        ids = pq.read_table(corpus, columns=["passage_id"])["passage_id"].combine_chunks()
        self._rows = np.arange(len(passage_ids))
        if not ids.equals(passage_ids.cast(ids.type)):
            self._rows = positions_of(passage_ids, ids)
        if (self._rows < 0).any():
            missing = passage_ids[int(np.argmin(self._rows))].as_py()
            raise DataError(
                f"passage {missing!r} of the embeddings is not in the corpus; encode this corpus"
            )

    @property
    def mean_bytes(self) -> float:
        """The mean size of a passage in memory."""
        file = pq.read_metadata(self._corpus)
        groups = [file.row_group(number) for number in range(file.num_row_groups)]
        columns = [group.column(n) for group in groups for n in range(group.num_columns)]
        return sum(column.total_uncompressed_size for column in columns) / max(1, file.num_rows)

    def read(self, positions: Numbers) -> Any:
        """Read some texts in one pass over the corpus, as an Arrow array.

        Raises:
            DataError: if one is not the text that was encoded.
        """
        order = np.argsort(self._rows[positions], kind="stable")
        rows = self._rows[positions[order]]
        texts: list[Any] = [pa.array([], pa.large_string())]
        start = 0
        for batch in pq.ParquetFile(self._corpus).iter_batches(columns=list(Passage._fields)):
            first, end = np.searchsorted(rows, [start, start + len(batch)])
            wanted = batch.take(pa.array(rows[first:end] - start))
            own = [passage.content for passage in passages_in(wanted)]
            encoded = self._contents[positions[order[first:end]]]
            if (other := (digests_of(own) != encoded).any(axis=1)).any():
                changed = wanted["passage_id"][int(np.argmax(other))].as_py()
                raise DataError(
                    f"the text of passage {changed!r} is not the one that was encoded; encode this "
                    "corpus"
                )
            texts.append(pa.array(own, pa.large_string()))
            start += len(batch)
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return pa.concat_arrays(texts).take(pa.array(back))
