"""Distil expanded queries: the query's side of a retriever learns where they would be searched.

The student g starts from the retriever f. Of a query q with expansions x it sees only q, and imitates

    t(q) = unit((1 - a) f(q) + a mean f(x)),    loss = 1 - cos(g(q), t(q)) + weight * InfoNCE(g(q), f(d))

so the passages' vectors f(d) stay, and so does every index of them (SoftQE: Pimpalkhute et al., 2024).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router

from expandr_core.data.tables import join_expansions, read_columns
from expandr_core.encoders.encode import Encoder, Vectors, encode_expanded
from expandr_core.encoders.fusion import Fusion
from expandr_core.encoders.load import load_retriever, load_sentence_model, normalizes
from expandr_core.errors import DataError
from expandr_core.options.distil import DistilLoss
from expandr_core.options.retriever import EncodingOptions, FusionOptions
from expandr_core.options.training import RetrieverTrainingOptions
from expandr_core.runtime.job import Progress
from expandr_core.seeding import derive_seed
from expandr_core.store.filesystems import partial_file
from expandr_core.training.distillation_loss import DistillationLoss
from expandr_core.training.distributed import rank
from expandr_core.training.retriever import save_retriever
from expandr_core.training.retriever_trainer import History, RetrieverTrainer
from expandr_core.training.rows import Row, TrainingRows, batches_of

STAGE = "distil"
ENCODED_AT_ONCE = 4096
TEACHER, PASSAGES = "teacher.npy", "passages.npy"


@dataclass(frozen=True)
class DistilTask:
    """One distillation, as all its processes get it.

    Attributes:
        examples: a retriever.parquet.
        mined: a negatives.parquet, or None.
        expansions: folders of the shards of the examples' expansions.
        unlabelled: a queries.parquet, or None.
        unlabelled_expansions: folders of the shards of its expansions.
        retriever: folder of f.
        checkpoints: folder for the checkpoints, and for what f has encoded.
        checkpoint: the one to resume from, or None.
        out: folder for the student.
        samples: expansions per query.
        loss: see `distances`.
        contrastive_weight: of the contrastive loss.
        training: how to train.
        encoding: how texts become vectors.
        fusion: how the teacher fuses a query with its expansions.
        seed: of the run.
    """

    examples: Path
    mined: Path | None
    expansions: list[Path]
    unlabelled: Path | None
    unlabelled_expansions: list[Path]
    retriever: Path
    checkpoints: Path
    checkpoint: Path | None
    out: Path
    samples: int
    loss: DistilLoss
    contrastive_weight: float
    training: RetrieverTrainingOptions
    encoding: EncodingOptions
    fusion: FusionOptions
    seed: int


class DistilRows:
    """Queries to learn from: examples, and queries without judgements. A row has no text but the query.

    Attributes:
        labelled: the examples; a row is one of them, with the numbers of its passages, or
        ids: the id of a query without judgements, and
        queries: its text.
        first: its number, after those of the examples' queries.
    """

    def __init__(self, task: DistilTask):
        """Read the examples, and the queries without judgements; see `TrainingRows`."""
        self.labelled = TrainingRows(task.examples, task.mined, None, task.training, task.seed)
        empty = {name: pa.array([], pa.large_string()) for name in ("query_id", "query")}
        table = read_columns(task.unlabelled, list(empty)) if task.unlabelled else empty
        self.ids, self.queries = table["query_id"], table["query"]
        self.first = int(self.labelled.pools.query_numbers.max()) + 1
        self.size = self.labelled.examples + len(self.queries)
        self._seed = task.seed

    @property
    def width(self) -> int:
        """The number of texts and labels in a row."""
        return self.labelled.width

    def batches(self, options: RetrieverTrainingOptions) -> list[NDArray[np.int64]]:
        """Return the row numbers of each batch: pass by pass, each ordered by a hash of the ids."""
        table = self.labelled.table
        pairs = zip(table["query_id"].to_pylist(), table["positive_id"].to_pylist(), strict=True)
        names = [*pairs, *((name, "") for name in self.ids.to_pylist())]
        passes = []
        for turn in range(options.epochs):
            hashes = [derive_seed(STAGE, self._seed, "order", turn, *name) for name in names]
            passes.append(np.argsort(np.array(hashes), kind="stable") + turn * self.size)
        return batches_of(np.concatenate(passes), options.batch_size)

    def row(self, number: int) -> Row:
        """Assemble one row; the labels of a query without judgements name no passage."""
        turn, place = divmod(number, self.size)
        no_text, own = [None] * (self.width - 1), place - self.labelled.examples
        if own < 0:
            row = self.labelled.row(turn * self.labelled.examples + place)
            return Row([row.texts[0], *no_text], row.label)
        return Row([self.queries[own].as_py(), *no_text], [self.first + own] + [-1] * len(no_text))

    def texts(self, task: DistilTask) -> Iterator[tuple[list[str], list[list[str]]]]:
        """Yield the queries in the order of their numbers, block by block, with their expansions."""
        table = self.labelled.table
        first = pa.array(np.unique(self.labelled.pools.query_numbers, return_index=True)[1])
        ids, queries = table["query_id"].take(first), table["query"].take(first)
        sources = [(ids, queries, task.expansions)]
        if len(self.queries):
            sources.append((self.ids, self.queries, task.unlabelled_expansions))
        for names, asked, folders in sources:
            samples = join_expansions(folders, names, task.samples)
            for start in range(0, len(asked), ENCODED_AT_ONCE):
                own = (each.slice(start, ENCODED_AT_ONCE).to_pylist() for each in samples)
                expansions = [[text for text in texts if text] for texts in zip(*own, strict=True)]
                yield asked.slice(start, ENCODED_AT_ONCE).to_pylist(), expansions

    def passages(self) -> tuple[NDArray[np.int64], Any]:
        """Return the numbers of all passages that rows can have, each once, and their texts."""
        pools = self.labelled.pools
        numbers, first = np.unique(
            np.concatenate([pools.positive_numbers, pools.numbers]), return_index=True
        )
        texts = pa.concat_arrays([self.labelled.table["positive"], pools.texts])
        return numbers, texts.take(pa.array(first))


def encode_once(task: DistilTask, device: str, report: Progress) -> None:
    """Encode by f, into the folder of the checkpoints: the teacher's vectors, and the passages'.

    A training that goes on finds them there.
    """
    folder, rows = task.checkpoints, DistilRows(task)
    encoder = Encoder(task.retriever, device, task.encoding)
    count, done = rows.first + len(rows.queries), 0
    if not (folder / TEACHER).exists():
        with partial_file(folder / TEACHER) as path:
            vectors = _new_vectors(path, count, encoder.dimensions)
            for queries, expansions in rows.texts(task):
                block = encode_expanded(encoder, queries, expansions, task.fusion)
                vectors[done : done + len(block)] = block
                done += len(block)
                report(done, count, "queries")
    if task.contrastive_weight and not (folder / PASSAGES).exists():
        numbers, texts = rows.passages()
        with partial_file(folder / PASSAGES) as path:
            vectors = _new_vectors(path, int(numbers.max()) + 1, encoder.dimensions)
            for start in range(0, len(numbers), ENCODED_AT_ONCE):
                some = texts.slice(start, ENCODED_AT_ONCE).to_pylist()
                vectors[numbers[start : start + len(some)]] = encoder.encode_passages(some)
                report(start + len(some), len(numbers), "passages")


def _new_vectors(path: Path, rows: int, dimensions: int) -> Vectors:
    return np.lib.format.open_memmap(path, "w+", np.float32, (rows, dimensions))


def train(task: DistilTask, device: str, report: Progress) -> tuple[dict[str, float], History]:
    """Train, or resume from the checkpoint, after `encode_once`; the first process writes the student.

    Returns:
        Counts of the rows, and the measures of the training.
    """
    rows, training = DistilRows(task), task.training
    model = load_retriever(task.retriever, device, task.encoding)
    teacher, passages = (
        np.load(path, mmap_mode="r") if path.exists() else None
        for path in (task.checkpoints / TEACHER, task.checkpoints / PASSAGES)
    )
    assert teacher is not None
    loss = DistillationLoss(
        teacher,
        passages,
        torch.from_numpy(rows.labelled.pools.positive_pairs).to(model.device),
        Fusion(normalizes(model, task.encoding)),
        task.loss,
        task.contrastive_weight,
        training.contrastive_temperature,
    )
    seed = derive_seed(STAGE, task.seed)
    option = "distil.learning_rate"
    trainer = RetrieverTrainer(
        model, rows, loss, training, seed, task.checkpoints, rate_option=option
    )
    student, passage_side = (load_sentence_model(task.retriever, "cpu").float() for _ in range(2))
    joined = of_two_sides(student, passage_side)  # before any work, as it may be refused
    history = trainer.train(report, task.checkpoint)
    if not rank():
        student.load_state_dict(model.state_dict())
        save_retriever(joined, task.retriever, task.encoding, task.out)
    counts: dict[str, float] = {
        "examples": rows.labelled.examples,
        "queries": rows.first,
        "unlabelled queries": len(rows.queries),
        "rows": rows.size * training.epochs,
    }
    return counts, replace(history, best=None)


def of_two_sides(
    queries: SentenceTransformer, passages: SentenceTransformer
) -> SentenceTransformer:
    """Join the query side of one model and the passage side of another, otherwise used alike."""
    router = Router.for_query_document(side(queries, "query"), side(passages, "document"))
    prompts: Any = passages.prompts
    return SentenceTransformer(
        modules=[router],
        device="cpu",
        prompts=prompts,
        similarity_fn_name=passages.similarity_fn_name,
        truncate_dim=passages.truncate_dim,
    )


def side(model: SentenceTransformer, kind: str) -> list[Any]:
    """Return the modules that encode one kind of text.

    Raises:
        DataError: if a router names its routes otherwise.
    """
    found: list[Any] = []
    for module in model.children():
        routes: Any = module.sub_modules if isinstance(module, Router) else {kind: [module]}
        if kind not in routes:
            raise DataError(
                f"the retriever's router has routes {sorted(routes)} and none called {kind!r}, so its "
                "sides cannot be told apart; save it by Router.for_query_document"
            )
        found += routes[kind]
    return found
