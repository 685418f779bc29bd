"""Train a retriever: read the rows, train in one process or several, and save the model."""

import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from expandr_core.encoders.fusion import Fusion
from expandr_core.encoders.load import limit_texts, load_retriever, load_sentence_model, normalizes
from expandr_core.encoders.portable import make_portable
from expandr_core.options.retriever import EncodingOptions, FusionOptions
from expandr_core.options.training import RetrieverTrainingOptions
from expandr_core.runtime.job import Progress
from expandr_core.seeding import derive_seed
from expandr_core.training.contrastive import ContrastiveLoss
from expandr_core.training.distributed import rank
from expandr_core.training.retriever_trainer import History, RetrieverTrainer, Weights
from expandr_core.training.rows import TrainingRows

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetrieverTask:
    """One training, as all its processes get it.

    Attributes:
        examples: a retriever.parquet.
        mined: a negatives.parquet, or None.
        expansions: folders of the shards, or None to train without expansions.
        retriever: folder of the model to start from.
        checkpoints: folder for the checkpoints.
        checkpoint: the one to resume from, or None.
        out: folder for the trained model.
        options: options of the training.
        encoding: how texts become vectors.
        fusion: how queries and expansions are searched with; see `FusionOptions.in_training`.
        seed: seed of the run.
    """

    examples: Path
    mined: Path | None
    expansions: list[Path] | None
    retriever: Path
    checkpoints: Path
    checkpoint: Path | None
    out: Path
    options: RetrieverTrainingOptions
    encoding: EncodingOptions
    fusion: FusionOptions
    seed: int


def train(task: RetrieverTask, device: str, report: Progress) -> tuple[dict[str, float], History]:
    """Train, or resume from the checkpoint; the first process writes the model.

    Returns:
        Counts of the rows, and the measures of the training, without weights.
    """
    options, encoding = task.options, task.encoding
    rows = TrainingRows(task.examples, task.mined, task.expansions, options, task.seed)
    if options.hard_negatives and not rows.slots and not rank():
        log.warning("no example has a hard negative: only the passages of other queries are left")
    model = load_retriever(task.retriever, device, encoding)
    pairs = torch.from_numpy(rows.pools.positive_pairs).to(model.device)
    searched, trained = task.fusion, task.fusion.in_training(options.expansion_weight)
    search, fusion = (
        Fusion.of(model, normalizes(model, encoding), each) for each in (searched, trained)
    )
    loss = ContrastiveLoss(pairs, fusion, options.contrastive_temperature)
    seed = derive_seed("train_retriever", task.seed)
    trainer = RetrieverTrainer(model, rows, loss, options, seed, task.checkpoints, search)
    history = trainer.train(report, task.checkpoint)
    if not rank():
        _save(history.best or model.state_dict(), task)
    return rows.counts(), replace(history, best=None)


def _save(weights: Weights, task: RetrieverTask) -> None:
    """Save the weights in the start model, with the similarity and text limit of the training."""
    trained: Any = load_sentence_model(task.retriever, "cpu").float()
    trained.load_state_dict(weights)
    limit_texts(trained, task.encoding.max_tokens)
    trained.similarity_fn_name = "cosine" if normalizes(trained, task.encoding) else "dot"
    trained.save(str(task.out), create_model_card=False)
    make_portable(task.out)
    for path in sorted(task.retriever.iterdir()):  # licence, notice, model card
        kept = path.suffix.lower() in ("", ".md", ".txt") and path.is_file()
        if kept and not (task.out / path.name).exists():
            shutil.copyfile(path, task.out / path.name)
