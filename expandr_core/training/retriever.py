"""Train a retriever: read the rows, train in one process or several, and save the model."""

import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer

from expandr_core.encoders.fusion import Fusion
from expandr_core.encoders.load import limit_texts, load_retriever, load_sentence_model, normalizes
from expandr_core.encoders.portable import make_portable
from expandr_core.options.retriever import EncodingOptions, FusionOptions
from expandr_core.options.training import RetrieverTrainingOptions
from expandr_core.runtime.job import Progress
from expandr_core.seeding import derive_seed
from expandr_core.training.contrastive import ContrastiveLoss
from expandr_core.training.dev_metric import dev_set
from expandr_core.training.distributed import rank
from expandr_core.training.retriever_trainer import History, RetrieverTrainer
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
    dev = (dev_set(rows), search) if len(rows.dev) else None
    trainer = RetrieverTrainer(model, rows, loss, options, seed, task.checkpoints, dev)
    history = trainer.train(report, task.checkpoint)
    if not rank():
        trained = load_sentence_model(task.retriever, "cpu").float()
        trained.load_state_dict(history.best or model.state_dict())
        save_retriever(trained, task.retriever, encoding, task.out)
    return rows.counts(), replace(history, best=None)


def save_retriever(
    model: SentenceTransformer, start: Path, encoding: EncodingOptions, out: Path
) -> None:
    """Save a trained model, with the similarity and text limit of the training.

    Args:
        model: on the CPU.
        start: folder of the model that training started from.
        encoding: of the training.
        out: folder for the model.
    """
    limit_texts(model, encoding.max_tokens)
    model.similarity_fn_name = "cosine" if normalizes(model, encoding) else "dot"
    model.save(str(out), create_model_card=False)
    make_portable(out)
    for path in sorted(start.iterdir()):  # licence, notice, model card
        kept = path.suffix.lower() in ("", ".md", ".txt") and path.is_file()
        if kept and not (out / path.name).exists():
            shutil.copyfile(path, out / path.name)
