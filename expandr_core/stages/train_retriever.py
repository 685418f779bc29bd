"""Train the retriever: the mean of query and expansion must be closest to the positive.

Input roles: `retriever` (the model to start from), `examples` (a retriever.parquet), `expansions`
(shards; without them, the paper's baseline SFT is trained on the same rows, as many times), and
`negatives` (a negatives.parquet, for examples that bring no hard negatives). Writes a folder as
`SentenceTransformer.save` does, which says itself how it was used (similarity, prompts, longest text);
expansion.json, how queries are expanded and fused; and training_log.parquet (step, loss,
dev_ndcg_at_10).

Differs from the reference: temperature and normalisation are those of reward and evaluation, known
positives are never negatives, a place without a hard negative stays empty, and with a dev part the
weights that are best on it are kept.
"""

import json
import logging
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from expandr_core.errors import DataError
from expandr_core.options.base import Options, identity
from expandr_core.options.loop import JointLoopOptions
from expandr_core.options.retriever import EncodingOptions, FusionOptions
from expandr_core.options.training import RetrieverTrainingOptions
from expandr_core.runtime.job import Job, Progress
from expandr_core.runtime.model_folders import SENTENCE_CONFIG
from expandr_core.seeding import derive_seed

if TYPE_CHECKING:
    from expandr_core.training.retriever import History, Weights

VERSION = 4
ROLE = "train"
ISOLATION = "always"
USE = "expansion.json"
log = logging.getLogger(__name__)


class TrainRetrieverOptions(Options):
    """How to train, and how texts become vectors meanwhile."""

    training: RetrieverTrainingOptions
    encoding: EncodingOptions
    fusion: FusionOptions

    @classmethod
    def of(cls, options: JointLoopOptions) -> Self:
        """Train the retriever of the loop."""
        retriever = options.retriever
        return cls(training=options.training, encoding=retriever.encoding, fusion=retriever.fusion)


OPTIONS = TrainRetrieverOptions


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
    options: TrainRetrieverOptions
    seed: int


def run(job: Job) -> None:
    """Train, or go on from the last checkpoint, and write the model."""
    from expandr_core.data.tables import file_in
    from expandr_core.training.distributed import launch
    from expandr_core.training.rank_checkpoints import newest_checkpoint

    options: TrainRetrieverOptions = job.options
    mined = job.inputs.get("negatives")
    expansions = None
    if "expansions" in job.spec.inputs and options.fusion.expansion_weight > 0:
        parts = job.store.shards(job.spec.inputs["expansions"])
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
    if options.training.processes == 1:
        job.counts |= train(task, device, job.progress)
    else:
        job.counts |= launch(train_with_others, options.training.processes, task, device)
    _write_use(job, options)


def train_with_others(task: Task, device: str) -> dict[str, float]:
    """Train as one of several processes; see `train`."""
    from expandr_core.training.distributed import joined

    with joined(device) as (own_device, report):
        return train(task, own_device, report)


def train(task: Task, device: str, report: Progress) -> dict[str, float]:
    """Train; the first process, or the only one, writes the model. Return the counts."""
    import torch

    from expandr_core.encoders.fusion import Fusion
    from expandr_core.encoders.load import load_retriever, normalizes
    from expandr_core.training.contrastive import ContrastiveLoss
    from expandr_core.training.distributed import rank
    from expandr_core.training.retriever import RetrieverTrainer
    from expandr_core.training.rows import TrainingRows

    options, training = task.options, task.options.training
    rows = TrainingRows(
        task.examples,
        mined=task.mined,
        expansions=task.expansions,
        expansions_per_query=training.expansions_per_query,
        epochs=training.epochs,
        hard_negatives=training.hard_negatives,
        dev_share=training.held_out_share,
        seed=task.seed,
    )
    if training.hard_negatives and not rows.places and not rank():
        log.warning("no example has a hard negative: only the passages of other queries are left")
    model = load_retriever(task.retriever, device, options.encoding)
    fusion = Fusion(normalizes(model, options.encoding), options.fusion.expansion_weight)
    seed = derive_seed("train_retriever", task.seed)
    pairs = torch.from_numpy(rows.pools.positive_pairs).to(model.device)
    loss = ContrastiveLoss(pairs, fusion, training.contrastive_temperature)
    trainer = RetrieverTrainer(model, rows, loss, training, seed, task.checkpoints)
    history = trainer.train(report, task.checkpoint)
    if not rank():
        _write_log(history, task.out)
        _save(history.best or model.state_dict(), task)
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


def _save(weights: "Weights", task: Task) -> None:
    """Save trained weights with everything else as in the start model, as it was trained to be used."""
    from expandr_core.encoders.load import limit_texts, load_sentence_model, normalizes
    from expandr_core.encoders.portable import make_portable

    encoding = task.options.encoding
    if not all(bool(weight.isfinite().all()) for weight in weights.values()):
        raise DataError("weights are no numbers after the last step; lower training.learning_rate")
    trained: Any = load_sentence_model(task.retriever, "cpu").float()
    trained.load_state_dict(weights)
    limit_texts(trained, encoding.max_tokens)
    trained.similarity_fn_name = "cosine" if normalizes(trained, encoding) else "dot"
    trained.save(str(task.out), create_model_card=False)
    make_portable(task.out)
    for path in sorted(task.retriever.iterdir()):  # licence, notice, model card
        kept = path.suffix.lower() in ("", ".md", ".txt") and path.is_file()
        if kept and not (task.out / path.name).exists():
            shutil.copyfile(path, task.out / path.name)


def _write_use(job: Job, options: TrainRetrieverOptions) -> None:
    """Write down how queries are expanded, and how the vectors of query and expansions become one."""
    config = json.loads((job.out / SENTENCE_CONFIG).read_bytes())
    use = {
        "expansion": _expansion(job) if options.fusion.expansion_weight else None,
        "fusion": {
            "expansion_weight": options.fusion.expansion_weight,
            "normalize": config["similarity_fn_name"] == "cosine",
            "rule": "scale each vector to length 1 if normalize, average the expansions' vectors and "
            "scale the mean likewise; expansion_weight of it and the rest of the query's vector, "
            "scaled likewise, is searched with",
        },
        "encoding": identity(options.encoding),
    }
    (job.out / USE).write_text(json.dumps(use, indent=1, ensure_ascii=False))


def _expansion(job: Job) -> dict[str, Any] | None:
    """Return prompt and sampling of the expansions that the training saw; None if there were none."""
    from expandr_core.generation.prompts import PROMPTS
    from expandr_core.stages import expand

    artifact = job.spec.inputs.get("expansions")
    said = job.store.manifest(artifact.key).get("options") if artifact else None
    if not said:
        return None
    asked = identity(expand.ExpandOptions(**said))
    sampling = {name: value for name, value in asked["sampling"].items() if name != "samples"}
    kept = {name: asked[name] for name in ("prompt", "max_prompt_tokens", "engine")}
    return kept | {"text": PROMPTS[asked["prompt"]], "sampling": sampling}
