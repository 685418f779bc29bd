"""Train the retriever: the mean of query and expansion must be closest to the positive.

Input roles: `retriever` (the model to start from), `examples` (a retriever.parquet), `expansions`
(shards; without them, the paper's baseline SFT is trained on the same rows, as many times), and
`negatives` (a negatives.parquet, for examples that bring no hard negatives). Writes a folder as
`SentenceTransformer.save` does, and training_log.parquet (step, loss, dev_ndcg_at_10).

Differs from the reference: temperature and normalisation are those of reward and evaluation, known
positives are never negatives, a place without a hard negative stays empty, and with a dev part the
weights that are best on it are kept.
"""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expandr_core.events import Progress
from expandr_core.options import ContrastiveTrainingOptions, EncodingOptions
from expandr_core.seeding import derive_seed
from expandr_core.stage import Job

if TYPE_CHECKING:
    from expandr_core.retriever_trainer import History, Weights

VERSION = 3
ROLE = "train"
ISOLATION = "always"
log = logging.getLogger(__name__)


class OPTIONS(ContrastiveTrainingOptions):
    """The options of the training, and what of the retriever's matters here."""

    encoding: EncodingOptions
    expansion_weight: float
    contrastive_temperature: float


@dataclass(frozen=True)
class Task:
    """What every process of a training is given.

    Attributes:
        examples: a retriever.parquet.
        mined: a negatives.parquet, or None.
        expansions: folders of the shards; None to train without.
        retriever: folder of the model to start from.
        checkpoints: folder for these.
        checkpoint: to go on from, or None.
        out: folder for the trained model.
        options: the stage's.
        seed: the run's.
    """

    examples: Path
    mined: Path | None
    expansions: list[Path] | None
    retriever: Path
    checkpoints: Path
    checkpoint: Path | None
    out: Path
    options: OPTIONS
    seed: int


def run(job: Job) -> None:
    """Train, or go on from the last checkpoint, and write the model."""
    from expandr_core.checkpoints import newest_checkpoint
    from expandr_core.joined import file_in
    from expandr_core.ranks import launch

    options: OPTIONS = job.options
    mined = job.inputs.get("negatives")
    expansions = None
    if "expansions" in job.spec.inputs and options.expansion_weight > 0:
        parts = job.store.parts(job.spec.inputs["expansions"])
        expansions = [job.store.local(part) for part in parts]
    task = Task(
        examples=file_in(job.inputs["examples"], "retriever.parquet"),
        mined=file_in(mined, "negatives.parquet") if mined else None,
        expansions=expansions,
        retriever=job.inputs["retriever"],
        checkpoints=job.checkpoints,
        checkpoint=newest_checkpoint(job.checkpoints),
        out=job.out,
        options=options,
        seed=job.seed,
    )
    device = job.spec.runtime.get("device", "auto")
    if options.processes == 1:
        job.counts |= train(task, device, job.progress)
    else:
        job.counts |= launch(train_with_others, options.processes, task, device)


def train_with_others(task: Task, device: str) -> dict[str, float]:
    """Train as one of several processes; see `train`."""
    from expandr_core.ranks import joined

    with joined(device) as (own_device, report):
        return train(task, own_device, report)


def train(task: Task, device: str, report: Progress) -> dict[str, float]:
    """Train; the first process, or the only one, writes the model. Return the counts."""
    import torch

    from expandr_core.contrastive import ContrastiveLoss
    from expandr_core.encoder import load_retriever, normalizes
    from expandr_core.fusion import Fusion
    from expandr_core.ranks import rank
    from expandr_core.retriever_trainer import RetrieverTrainer
    from expandr_core.training_rows import TrainingRows

    options = task.options
    rows = TrainingRows(
        task.examples,
        mined=task.mined,
        expansions=task.expansions,
        expansions_per_query=options.expansions_per_query,
        epochs=options.epochs,
        hard_negatives=options.hard_negatives,
        dev_share=options.dev_share,
        seed=task.seed,
    )
    if options.hard_negatives and not rows.places and not rank():
        log.warning("no example has a hard negative: only the passages of other queries are left")
    model = load_retriever(task.retriever, device, options.encoding)
    fusion = Fusion(normalizes(model, options.encoding), options.expansion_weight)
    seed = derive_seed("train_retriever", task.seed)
    pairs = torch.from_numpy(rows.pools.positive_pairs).to(model.device)
    loss = ContrastiveLoss(pairs, fusion, options.contrastive_temperature)
    trainer = RetrieverTrainer(model, rows, loss, options, seed, task.checkpoints)
    history = trainer.train(report, task.checkpoint)
    if not rank():
        _write_log(history, task.out)
        _save(history.best or model.state_dict(), task.retriever, task.out)
    return rows.counts() | _counts(history)


def _write_log(history: "History", folder: Path) -> None:
    """Write the loss of each step, and what was measured after it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    steps = range(1, len(history.losses) + 1)
    columns = {
        "step": pa.array(steps, pa.int32()),
        "loss": pa.array(history.losses, pa.float32()),
        "dev_ndcg_at_10": pa.array([history.dev.get(step) for step in steps], pa.float32()),
    }
    pq.write_table(pa.table(columns), folder / "training_log.parquet", compression="zstd")


def _counts(history: "History") -> dict[str, float]:
    """Count what tells how it went."""
    losses = history.losses
    tenth = math.ceil(len(losses) / 10)
    counts: dict[str, float] = {"steps": len(losses)}
    for name, part in (("first", losses[:tenth]), ("last", losses[-tenth:])):
        counts[f"loss/{name} tenth of the steps"] = round(math.fsum(part) / tenth, 4)
    if history.best_step is not None:
        counts["best step"] = history.best_step
        counts["dev nDCG@10/before training"] = round(history.dev[0], 4)
        counts["dev nDCG@10/best step"] = round(history.dev[history.best_step], 4)
    return counts


def _save(weights: "Weights", start: Path, folder: Path) -> None:
    """Save trained weights with everything else as in the start model, its limits included."""
    from expandr_core.sentence_models import load_sentence_model

    trained: Any = load_sentence_model(start, "cpu").float()
    trained.load_state_dict(weights)
    trained.save(str(folder), create_model_card=False)
