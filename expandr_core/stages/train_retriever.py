"""Train the retriever: the mean of query and expansion must be closest to the positive.

Input roles: `retriever` (the model to start from), `examples` (a retriever.parquet), `expansions`
(shards; without them, the paper's baseline SFT is trained on the same rows, as many times), and
`negatives` (a negatives.parquet, for examples that bring no hard negatives). Writes a folder as
`SentenceTransformer.save` does, and training_log.parquet (step, loss).

Differs from the reference: temperature and normalisation are those of reward and evaluation, known
positives are never negatives, and a place without a hard negative stays empty.
"""

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expandr_core.options import EncodingOptions, Options, runtime
from expandr_core.seeding import derive_seed
from expandr_core.stage import Job

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

VERSION = 2
ROLE = "train"
ISOLATION = "always"
log = logging.getLogger(__name__)


class OPTIONS(Options):
    """What of `RetrieverTrainingOptions` and `RetrieverOptions` matters here."""

    learning_rate: float
    epochs: int
    batch_size: int
    warmup_share: float
    hard_negatives: int
    expansions_per_query: int
    encoding: EncodingOptions
    expansion_weight: float
    contrastive_temperature: float
    checkpoint_steps: int = runtime(200)


def run(job: Job) -> None:
    """Train, or go on from the last checkpoint, and write the model."""
    from expandr_core.encoder import load_retriever
    from expandr_core.joined import file_in
    from expandr_core.retriever_trainer import make_trainer
    from expandr_core.training import last_checkpoint
    from expandr_core.training_rows import TrainingRows

    options: OPTIONS = job.options
    mined = job.inputs.get("negatives")
    rows = TrainingRows(
        file_in(job.inputs["examples"], "retriever.parquet"),
        mined=file_in(mined, "negatives.parquet") if mined else None,
        expansions=job.shards("expansions") if "expansions" in job.spec.inputs else None,
        expansions_per_query=options.expansions_per_query,
        epochs=options.epochs,
        hard_negatives=options.hard_negatives,
        seed=job.seed,
    )
    job.counts |= rows.counts()
    if options.hard_negatives and not rows.pools.size.any():
        log.warning("no example has a hard negative: only the passages of other queries are left")
    device = job.spec.runtime.get("device", "auto")
    model = load_retriever(job.inputs["retriever"], device, options.encoding)
    trainer = make_trainer(job, model, rows, derive_seed("train_retriever", job.seed))
    trainer.train(resume_from_checkpoint=last_checkpoint(job.checkpoints))
    _write_log(job, trainer.state.log_history)
    _save(model, job.inputs["retriever"], job.out)


def _write_log(job: Job, history: list[dict[str, Any]]) -> None:
    """Write the loss of each step, and count what tells how it went.

    Raises:
        RuntimeError: if the loss is not a number at some step.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    steps = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    for step, loss in steps:
        if not math.isfinite(loss):
            raise RuntimeError(f"the loss is {loss} at step {step}; lower training.learning_rate")
    columns = {"step": pa.array([step for step, _ in steps], pa.int32())}
    columns["loss"] = pa.array([loss for _, loss in steps], pa.float32())
    pq.write_table(pa.table(columns), job.out / "training_log.parquet", compression="zstd")
    tenth = math.ceil(len(steps) / 10)
    job.counts["steps"] = len(steps)
    for name, part in (("first", steps[:tenth]), ("last", steps[-tenth:])):
        mean = math.fsum(loss for _, loss in part) / tenth
        job.counts[f"loss/{name} tenth of the steps"] = round(mean, 4)


def _save(model: "SentenceTransformer", start: Path, folder: Path) -> None:
    """Save the trained weights with everything else as in the start model, its limits included."""
    from expandr_core.sentence_models import load_sentence_model

    trained = load_sentence_model(start, "cpu").float()
    trained.load_state_dict(model.state_dict())
    trained.save(str(folder), create_model_card=False)
