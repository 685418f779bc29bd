"""Distil: a query encoder that finds by the query alone what the expanded query finds.

Input roles: `retriever` (a model folder), `examples` (a retriever.parquet), `expansions` (shards), and
perhaps `negatives` (a negatives.parquet), and `unlabelled` (a queries.parquet) with
`unlabelled_expansions` (shards). Writes a folder as `SentenceTransformer.save` does, with a router:
queries go to the student, passages to the retriever's own encoder, so that vectors of passages stay as
they are; and training_log.parquet (step, loss).
"""

from typing import Self

from expandr_core.options.base import Options, Positive
from expandr_core.options.distil import DistilLoss
from expandr_core.options.loop import JointLoopOptions
from expandr_core.options.retriever import EncodingOptions, FusionOptions
from expandr_core.options.training import RetrieverTrainingOptions
from expandr_core.planning.workload import PlannedStep
from expandr_core.runtime.job import Job
from expandr_core.stages.train_retriever import fetched_shards, measures, write_log

VERSION = 1
ROLE = "train"
ISOLATION = "always"


class DistilStageOptions(Options):
    """What the student imitates, and how it is trained."""

    samples: Positive
    loss: DistilLoss
    contrastive_weight: float
    training: RetrieverTrainingOptions
    encoding: EncodingOptions
    fusion: FusionOptions

    @classmethod
    def of(cls, options: JointLoopOptions) -> Self:
        """Distil the models of the loop."""
        distil, retriever = options.distil, options.retriever
        return cls(
            samples=distil.samples or options.training.expansions_per_query,
            loss=distil.loss,
            contrastive_weight=distil.contrastive_weight,
            training=distil.training(options.training),
            encoding=retriever.encoding,
            fusion=retriever.fusion.in_training(distil.expansion_weight),
        )


OPTIONS = DistilStageOptions


def workload(step: PlannedStep) -> dict[str, float]:
    """Return the rows to train on."""
    return {"rows": step.counts["rows"]}


def predict(step: PlannedStep) -> dict[str, float]:
    """Predict that every query is a row of each epoch."""
    options: DistilStageOptions = step.options
    unlabelled = step.rows("unlabelled") if "unlabelled" in step.inputs else 0
    return {"rows": (step.rows("examples") + unlabelled) * options.training.epochs}


def run(job: Job) -> None:
    """Encode what is imitated; train, or resume from the last checkpoint, and write the model."""
    from expandr_core.data.tables import file_in
    from expandr_core.training.checkpoints import newest_checkpoint
    from expandr_core.training.distil import DistilTask, encode_once, train
    from expandr_core.training.distributed import launch

    options: DistilStageOptions = job.options
    mined, unlabelled = job.inputs.get("negatives"), job.inputs.get("unlabelled")
    task = DistilTask(
        examples=file_in(job.inputs["examples"], "retriever.parquet"),
        mined=file_in(mined, "negatives.parquet") if mined else None,
        expansions=fetched_shards(job, "expansions"),
        unlabelled=unlabelled,
        unlabelled_expansions=fetched_shards(job, "unlabelled_expansions") if unlabelled else [],
        retriever=job.inputs["retriever"],
        checkpoints=job.checkpoints,
        checkpoint=newest_checkpoint(job.checkpoints),
        out=job.out,
        samples=options.samples,
        loss=options.loss,
        contrastive_weight=options.contrastive_weight,
        training=options.training,
        encoding=options.encoding,
        fusion=options.fusion,
        seed=job.seed,
    )
    device = job.spec.runtime.get("device", "auto")
    encode_once(task, device, job.progress)
    if options.training.processes == 1:
        counts, history = train(task, device, job.progress)
    else:
        counts, history = launch(train, options.training.processes, device, task)
    job.counts |= counts | measures(history)
    write_log(job, history)
