"""An opened set of models: encoder, index, gate, writer, and the texts of the corpus."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from expandr_core.encoders.encode import Encoder, Vectors
from expandr_core.errors import DataError
from expandr_core.lineage.nodes import Lineage
from expandr_core.options.evaluation import RankingOptions
from expandr_core.options.loop import JointLoopOptions
from expandr_core.options.retriever import FusionOptions
from expandr_core.records import Passage, passages_in
from expandr_core.retrieval.expanded import ExpandedSearch
from expandr_core.retrieval.gate import Gate, read_gate
from expandr_core.retrieval.index import Index, open_index
from expandr_core.runtime.memory import search_memory
from expandr_core.serving.writer import Writer, Written
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store

Model = TypeVar("Model")
Kind = Literal["query", "passage", "distilled"]


class Served(NamedTuple):
    """What a run kept, and the version of a registered model that it is.

    Attributes:
        model: the registered model; empty for a run that was named itself.
        version: its number; 0 for a run that was named itself.
        run: the run.
        options: of the run.
        models: its artifacts by role: llm, retriever, corpus, and perhaps gate and distilled.
        vectors: the encoded corpus.
    """

    model: str
    version: int
    run: str
    options: JointLoopOptions
    models: dict[str, Artifact]
    vectors: Artifact

    def artifacts(self) -> dict[str, Artifact]:
        """Return all artifacts by role."""
        return self.models | {"index": self.vectors}


class Opened:
    """Models that answer questions; each is loaded when it is first used, or all by `load`.

    Attributes:
        served: what they are.
        store: that has them.
        writer: of expansions; None if there is no language model.
    """

    def __init__(self, store: Store, served: Served, writer: Writer | None):
        self.store, self.served, self.writer = store, served, writer

    def load(self) -> None:
        """Load everything but the language model, and encode once, which is slower than later."""
        self.embed([(("a",), "distilled" if self.student else "query")])
        _ = self.index, self.gate, self.corpus, self.judged, self.lineage

    @cached_property
    def encoder(self) -> Encoder:
        """The retriever's encoder."""
        return self._encoder("retriever")

    @cached_property
    def student(self) -> Encoder | None:
        """The distilled query encoder, if the run has one."""
        return self._encoder("distilled") if "distilled" in self.served.models else None

    @cached_property
    def gate(self) -> Gate | None:
        """The gate, if the run has one."""
        found = self.served.models.get("gate")
        return read_gate(self.store.local(found)) if found else None

    @cached_property
    def index(self) -> Index:
        """The encoded corpus, whose vectors stay on disk."""
        folders = (self.store.local(part) for part in self.store.shards(self.served.vectors))
        return open_index(folders, self.encoder.model.device.type)

    @cached_property
    def corpus(self) -> tuple[pa.Table, dict[str, int]]:
        """The passages, in memory, and the row of each id."""
        table = pq.read_table(self.store.local(self.served.models["corpus"]))
        return table, {each: row for row, each in enumerate(table["passage_id"].to_pylist())}

    @cached_property
    def judged(self) -> dict[str, dict[str, int]]:
        """The judgements of the collection's dev and test queries: by query, by passage id."""
        corpus, judged = self.served.models["corpus"], {}
        there = {file["path"] for file in self.store.manifest(corpus.key)["files"]}
        for split in ("dev", "test"):
            names = f"{split}_queries.parquet", f"{split}_qrels.parquet"
            if not there.issuperset(names):
                continue
            queries, qrels = (self._rows(corpus, name) for name in names)
            texts = {row["query_id"]: row["query"] for row in queries}
            for row in qrels:
                if text := texts.get(row["query_id"]):
                    judged.setdefault(text, {})[row["passage_id"]] = row["relevance"]
        return judged

    @cached_property
    def lineage(self) -> list[dict[str, Any]]:
        """Every artifact that the models were made from, each after its inputs."""
        keys = (each.key for each in self.served.artifacts().values())
        return [
            {
                "key": node.key,
                "stage": node.stage,
                "created": node.manifest.get("created", ""),
                "inputs": {role: each["key"] for role, each in node.inputs.items()},
            }
            for node in Lineage(self.store).upstream(keys)
        ]

    def passages(self, ids: Iterable[str]) -> list[Passage]:
        """Return passages of the corpus by their ids, in that order."""
        table, rows = self.corpus
        return passages_in(table.take(pa.array([rows[each] for each in ids], pa.int64())))

    def embed(self, asked: Sequence[tuple[Sequence[str], Kind]]) -> list[Vectors]:
        """Return the vectors of each group of texts, as search uses them; each (texts, dimensions)."""
        kinds: set[Kind] = {kind for _, kind in asked}
        texts = {kind: [text for own, of in asked if of == kind for text in own] for kind in kinds}
        vectors = {kind: iter(self._encode(texts[kind], kind)) for kind in kinds}
        return [np.stack([next(vectors[kind]) for _ in own]) for own, kind in asked]

    def _encode(self, texts: list[str], kind: Kind) -> Vectors:
        if kind == "passage":
            return self.encoder.encode_passages(texts)
        student = (
            required(self.student, "a distilled query encoder") if kind == "distilled" else None
        )
        return (student or self.encoder).encode_queries(texts)

    def expand(self, asked: Sequence[tuple[str, int | None]]) -> list[Written]:
        """Return the expansion of each query and seed; see `Writer.write`."""
        return required(self.writer, "a language model").write(asked)

    def search(self, encoder: Encoder, block: pa.Table, weight: float, depth: int) -> pa.Table:
        """Search for the questions of a block; return their run.

        Args:
            encoder: of the queries.
            block: query_id, query, and expansions (a list of texts).
            weight: of the expansions.
            depth: hits for each question.
        """
        retriever = self.served.options.measured_retriever
        method = retriever.fusion.method if weight else "vector"
        search = ExpandedSearch(
            encoder,
            self.index,
            FusionOptions(expansion_weight=weight, method=method),
            RankingOptions(depth=depth, identical_ids="keep"),
            search_memory(retriever.index.search_memory_gb),
        )
        [(_, found)] = search.search([block], lambda _: None)
        return found

    def _encoder(self, role: str) -> Encoder:
        options, folder = self.served.options, self.store.local(self.served.models[role])
        return Encoder(folder, options.device, options.measured_retriever.encoding)

    def _rows(self, corpus: Artifact, name: str) -> list[dict[str, Any]]:
        path: Path = self.store.local(corpus.model_copy(update={"path": name}))
        return pq.read_table(path).to_pylist()


def required(model: Model | None, what: str) -> Model:
    """Return a model that a request needs.

    Raises:
        DataError: if there is none.
    """
    if model is None:
        raise DataError(f"{what} is not served; /lineage says what is")
    return model
