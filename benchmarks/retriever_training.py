"""Time the training of a retriever against sentence-transformers' trainer, in samples per second.

    python benchmarks/retriever_training.py TRIPLES MODEL [--steps 6] [--repeat 3] [--arms ...]

TRIPLES is a JSON Lines file with query, positive and negative, MODEL the folder of a
sentence-transformers model. All arms take the same steps on the same triples from the same start.
They take turns, so that other work on the machine affects all alike; if there is much of it, CPU
seconds tell more. A tenth of the queries is held out: after the last repetition, nDCG@10 measures how
well each model finds their positives among the passages of their triples. Exits with 1 if ours is
less than 1.3 times as fast, or worse by more than 0.02.
"""

import argparse
import hashlib
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset, disable_progress_bars
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from expandr_core.encoders.bulk import Precision
from expandr_core.encoders.fusion import Fusion
from expandr_core.encoders.load import load_retriever
from expandr_core.options.retriever import EncodingOptions
from expandr_core.options.training import RetrieverTrainingOptions
from expandr_core.runtime.job import no_progress
from expandr_core.training.contrastive import ContrastiveLoss
from expandr_core.training.dev_metric import DevSet, dev_set, measure
from expandr_core.training.grad_cache import GradCache
from expandr_core.training.retriever import RetrieverTrainer
from expandr_core.training.rows import TrainingRows

TEMPERATURE = 0.05  # the default scale of their loss is 20
LEARNING_RATE = 2e-5
WARMUP_SHARE = 0.1
DEV_SHARE = 0.1
ENOUGH = 1.3
NOISE = 0.02


class Work(NamedTuple):
    """What every arm does."""

    model: str
    rows: TrainingRows
    batch_size: int
    folder: Path


def read_rows(path: Path, examples: pa.Table) -> TrainingRows:
    """Write examples to a file and read them as training does."""
    pq.write_table(examples, path)
    dev_share = DEV_SHARE if path.name == "all.parquet" else 0.0
    options = RetrieverTrainingOptions(epochs=1, held_out_share=dev_share)
    return TrainingRows(path, mined=None, expansions=None, options=options, seed=0)


def examples_of(triples: Path) -> pa.Table:
    """Read triples as the stages know them: a hash of a text is its id."""
    rows = []
    for line in triples.read_text(encoding="utf-8").splitlines():
        texts = json.loads(line)
        ids = {name: hashlib.sha256(texts[name].encode()).hexdigest()[:16] for name in texts}
        rows.append(
            {
                "query_id": ids["query"],
                "query": texts["query"],
                "source": triples.stem,
                "positive_id": ids["positive"],
                "positive": texts["positive"],
                "negative_ids": [ids["negative"]],
                "negatives": [texts["negative"]],
            }
        )
    return pa.Table.from_pylist(rows)


class Seconds(NamedTuple):
    """How long something took: by the clock, and of the CPUs in this process."""

    clock: float
    cpu: float


def seconds_of(train: Callable[[], object]) -> Seconds:
    """Call, and tell how long it took."""
    clock, cpu = time.monotonic(), time.process_time()
    train()
    return Seconds(time.monotonic() - clock, time.process_time() - cpu)


def ours(work: Work, seed: int, precision: Precision) -> tuple[SentenceTransformer, Seconds]:
    """Train with our trainer; return the model and how long it took."""
    options = RetrieverTrainingOptions(
        learning_rate=LEARNING_RATE,
        epochs=1,
        batch_size=work.batch_size,
        warmup_share=WARMUP_SHARE,
        precision=precision,
        checkpoint_steps=10**6,
    )
    model = load_retriever(Path(work.model), "cpu", EncodingOptions())
    pairs = torch.from_numpy(work.rows.pools.positive_pairs)
    loss = ContrastiveLoss(pairs, Fusion(normalize=True), TEMPERATURE)
    trainer = RetrieverTrainer(model, work.rows, loss, options, seed, work.folder)
    return model, seconds_of(lambda: trainer.train(no_progress, None))


def theirs(work: Work, seed: int, precision: Precision) -> tuple[SentenceTransformer, Seconds]:
    """Train with sentence-transformers' trainer; return the model and how long it took."""
    model = SentenceTransformer(work.model, device="cpu", local_files_only=True)
    texts = [work.rows.row(number).texts for number in range(work.rows.examples)]
    dataset = Dataset.from_list(
        [{"anchor": row[0], "positive": row[2], "negative": row[3]} for row in texts]
    )
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(work.folder),
        num_train_epochs=1,
        per_device_train_batch_size=work.batch_size,
        learning_rate=LEARNING_RATE,
        warmup_steps=WARMUP_SHARE,
        bf16=precision == "bfloat16",
        use_cpu=True,
        seed=seed,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        loss=MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE),
    )
    return model, seconds_of(trainer.train)


ARMS: dict[str, tuple[Callable[..., tuple[SentenceTransformer, Seconds]], Precision]] = {
    "theirs": (theirs, "float32"),
    "theirs-bfloat16": (theirs, "bfloat16"),
    "ours-float32": (ours, "float32"),
    "ours": (ours, "bfloat16"),
}


def quality(model: SentenceTransformer, dev: DevSet) -> float:
    """Measure a model on the held-out queries."""
    return measure(GradCache(model, "float32", 64), dev, Fusion(normalize=True))


def main() -> int:
    """Train with each arm in turn, several times, and compare medians."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("triples", type=Path)
    parser.add_argument("model")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["theirs", "ours"])
    arguments: Any = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    disable_progress_bars()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        examples = examples_of(arguments.triples)
        everything = read_rows(Path(folder, "all.parquet"), examples)
        chosen = everything.train[: arguments.steps * arguments.batch_size]
        rows = read_rows(Path(folder, "train.parquet"), examples.take(pa.array(chosen)))
        work = Work(arguments.model, rows, arguments.batch_size, Path(folder))
        dev = dev_set(everything)
        start = load_retriever(Path(arguments.model), "cpu", EncodingOptions())
        print(
            f"{rows.examples} triples in steps of {work.batch_size}; {len(dev.queries)} held-out "
            f"queries, {len(dev.passages)} passages; nDCG@10 before: {quality(start, dev):.4f}"
        )
        took: dict[str, list[Seconds]] = {name: [] for name in arguments.arms}
        scores: dict[str, float] = {}
        for seed in range(arguments.repeat):
            for name in arguments.arms:
                train, precision = ARMS[name]
                model, seconds = train(work, seed, precision)
                took[name].append(seconds)
                print(f"{name:16s}{seconds.clock:8.1f} s, {seconds.cpu:8.1f} CPU s", flush=True)
                if seed == arguments.repeat - 1:
                    scores[name] = quality(model, dev)
    clocks, cpus = (
        {name: statistics.median(getattr(each, kind) for each in took[name]) for name in took}
        for kind in Seconds._fields
    )
    print("medians         samples/s   ratio   samples/CPU s   ratio   nDCG@10")
    for name in took:
        by_clock, by_cpu = rows.examples / clocks[name], rows.examples / cpus[name]
        ratios = clocks["theirs"] / clocks[name], cpus["theirs"] / cpus[name]
        print(
            f"{name:16s}{by_clock:9.2f}{ratios[0]:8.2f}{by_cpu:16.2f}{ratios[1]:8.2f}"
            f"{scores[name]:10.4f}"
        )
    worse = scores["theirs"] - scores["ours"]
    return int(clocks["theirs"] < ENOUGH * clocks["ours"] or worse > NOISE)


if __name__ == "__main__":
    sys.exit(main())
