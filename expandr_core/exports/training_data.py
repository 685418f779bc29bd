"""Training data in the layouts of the paper's releases, which `data.pairs` and `data.triples` read.

train.json, dev.json    {"conversations": [{"from": "human", "value"}], "chosen": {"from": "gpt",
                        "value"}, "rejected": ...}; and for pairs that we have made "expandr": what the
                        layout has no place for, so that importing them loses nothing
SOURCE.jsonl            {"query", "pseudo_doc", "pos": [...], "neg": [...]}
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from expandr_core.data.tables import file_in, read_columns
from expandr_core.errors import DataError
from expandr_core.generation.prompts import render_prompt
from expandr_core.options.generation import PromptOptions
from expandr_core.preferences.pairs import RETRIEVAL
from expandr_core.records import EXAMPLES
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store

_ROWS = 4096
_OWN_SIDE = ("sample", "finish_reason", "reward", "similarity")


def export_pairs(store: Store, pairs: Artifact, folder: Path) -> dict[str, int]:
    """Write preference pairs as JSON arrays, one for each split; return the rows of each file.

    Raises:
        DataError: if the prompt that they were made with is not known any more.
    """
    prompt = prompt_of(store, pairs)
    rows = pq.read_table(file_in(store.local(pairs), "pairs.parquet")).to_pylist()
    written = {}
    for split in ("train", "dev"):
        lines = [_dumped(_pair(row, prompt)) for row in rows if row["split"] == split]
        if lines:
            array = ",\n".join(lines)
            (folder / f"{split}.json").write_text(f"[\n{array}\n]\n", encoding="utf-8")
            written[f"{split}.json"] = len(lines)
    return written


def prompt_of(store: Store, pairs: Artifact) -> PromptOptions:
    """Return the prompt that the texts of pairs were written for.

    Raises:
        DataError: if what tells it is no longer in the store.
    """
    manifest = store.manifest(pairs.key)
    roles = () if pairs.stage == "import_pairs" else ("rewards", "candidates")
    try:
        for role in roles:
            manifest = store.manifest(manifest["inputs"][role]["key"])
    except (FileNotFoundError, KeyError) as error:
        raise DataError(
            f"{pairs.key}: the candidates that it was chosen from are gone, and with them the prompt; "
            "run the loop again, which makes them, and then export"
        ) from error
    return PromptOptions(**manifest["options"]["prompt"])


def _pair(row: dict[str, Any], prompt: PromptOptions) -> dict[str, Any]:
    turn = row.get("prompt_text") or render_prompt(prompt, row["query"])
    pair: dict[str, Any] = {"conversations": [{"from": "human", "value": turn}]}
    for side in ("chosen", "rejected"):
        pair[side] = {"from": "gpt", "value": row[f"{side}_text"]}
    if row["chosen_sample"] is not None:
        own: dict[str, Any] = {name: row[name] for name in ("query_id", "split", "margin")}
        measured = {name: row[name] for name in row if name.endswith(f"_{RETRIEVAL}")}
        own |= {"measured": measured} if measured else {}
        for side in ("chosen", "rejected"):
            own[side] = {name: row[f"{side}_{name}"] for name in _OWN_SIDE}
        pair["expandr"] = own
    return pair


def _dumped(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


def export_examples(
    examples: Path, expansions: list[Path], mined: Path | None, folder: Path
) -> dict[str, int]:
    """Write training examples as JSON lines, one file for each source; return the rows of each file.

    Every positive and every expansion of a query is in a row: row n has the n-th of either, and the
    shorter list begins again. Only the expansions are held in memory, as in training.

    Args:
        examples: a retriever.parquet or preference.parquet, sorted by query_id.
        expansions: shards of its expansions; empty to write rows without `pseudo_doc`.
        mined: a negatives.parquet, for examples without negatives; or None.
        folder: receives the files.

    Raises:
        DataError: if the queries have no positives.
    """
    if not set(EXAMPLES.names) <= set(pq.read_schema(examples).names):
        raise DataError(
            f"{examples.name} holds queries without positives; only training examples can be exported"
        )
    texts = _Texts(expansions)
    negatives = _Mined(mined)
    written: dict[str, int] = defaultdict(int)
    with ExitStack() as files:
        opened: dict[str, Any] = {}
        for query_id, own in groupby(_rows(examples), key=lambda row: row["query_id"]):
            rows, pseudo_docs = list(own), texts.of(query_id)
            for number in range(max(len(rows), len(pseudo_docs))):
                row = rows[number % len(rows)]
                name = f"{row['source']}.jsonl"
                if name not in opened:
                    opened[name] = files.enter_context((folder / name).open("w", encoding="utf-8"))
                record = {"query": row["query"]}
                if pseudo_docs:
                    record["pseudo_doc"] = pseudo_docs[number % len(pseudo_docs)]
                record["pos"] = [row["positive"]]
                record["neg"] = row["negatives"] or negatives.of(query_id)
                opened[name].write(f"{_dumped(record)}\n")
                written[name] += 1
    return dict(written)


class _Texts:
    """Expansions by query, in the order of their samples; the texts stay in Arrow."""

    def __init__(self, shards: Iterable[Path]):
        columns = ["query_id", "sample", "text"]
        tables = [pa.table(read_columns(each / "expansions.parquet", columns)) for each in shards]
        self.lines: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self.texts: Any = None
        if tables:
            table = pa.concat_tables(tables)
            self.texts = table["text"]
            ids = zip(table["query_id"].to_pylist(), table["sample"].to_pylist(), strict=True)
            for line, (query_id, sample) in enumerate(ids):
                self.lines[query_id].append((sample, line))

    def of(self, query_id: str) -> list[str]:
        """Return the expansions of a query that are not empty, each once."""
        texts = [self.texts[line].as_py() for _, line in sorted(self.lines.get(query_id, []))]
        return [text for text in dict.fromkeys(texts) if text]


class _Mined:
    """Mined negatives by query, read from a sorted file as far as they are asked for."""

    def __init__(self, path: Path | None):
        self.rows = _rows(path) if path else iter(())
        self.row = next(self.rows, None)

    def of(self, query_id: str) -> list[str]:
        """Return the negatives of a query, nearest first; later calls ask for later queries."""
        while self.row and self.row["query_id"] < query_id:
            self.row = next(self.rows, None)
        return self.row["negatives"] if self.row and self.row["query_id"] == query_id else []


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for batch in pq.ParquetFile(path).iter_batches(_ROWS, use_threads=False):
        yield from batch.to_pylist()
