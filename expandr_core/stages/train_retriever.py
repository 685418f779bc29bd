"""Train the retriever: the fused vector of query and expansion must be closest to the positive.

Input roles: `retriever` (the model to start from), `examples` (a retriever.parquet), `expansions`
(shards; without them, the paper's SFT baseline is trained on the same rows for as many steps), and
`negatives` (a negatives.parquet, for examples without hard negatives). Writes a folder as
`SentenceTransformer.save` does, whose config states similarity, prompts and longest text;
expansion.json, how queries are expanded and fused; and training_log.parquet (step, loss,
dev_ndcg_at_10).

Differs from the reference: temperature and normalisation are those of reward and evaluation, known
positives are never negatives, a slot without a hard negative stays empty, and with a dev share the
weights that are best on it are kept.
"""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from expandr_core.options.base import Options, identity
from expandr_core.options.loop import JointLoopOptions
from expandr_core.options.retriever import EncodingOptions, FusionOptions
from expandr_core.options.training import RetrieverTrainingOptions
from expandr_core.planning.workload import PlannedStep
from expandr_core.runtime.job import FETCHED_AT_ONCE, Job
from expandr_core.runtime.model_folders import SENTENCE_CONFIG

if TYPE_CHECKING:
    from expandr_core.training.retriever_trainer import History

VERSION = 6
ROLE = "train"
ISOLATION = "always"
USE = "expansion.json"


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

    @property
    def trained(self) -> FusionOptions:
        """How query and expansion are fused in training."""
        return self.fusion.in_training(self.training.expansion_weight)


OPTIONS = TrainRetrieverOptions


def workload(step: PlannedStep) -> dict[str, float]:
    """Return the rows to train on; expanded ones have more to encode."""
    rows = step.counts["rows"]
    return {"rows": rows, "expanded rows": rows * ("expansions" in step.inputs)}


def predict(step: PlannedStep) -> dict[str, float]:
    """Predict that every example is a row of each epoch."""
    options: TrainRetrieverOptions = step.options
    training = options.training
    passes = training.epochs * training.expansions_per_query
    return {"rows": step.rows("examples") * (1 - training.held_out_share) * passes}


def run(job: Job) -> None:
    """Train, or resume from the last checkpoint, and write the model."""
    from expandr_core.data.tables import file_in
    from expandr_core.training.checkpoints import newest_checkpoint
    from expandr_core.training.distributed import launch
    from expandr_core.training.retriever import RetrieverTask, train

    options: TrainRetrieverOptions = job.options
    mined = job.inputs.get("negatives")
    expansions = None
    if "expansions" in job.spec.inputs and options.trained.expansion_weight > 0:
        expansions = fetched_shards(job, "expansions")
    task = RetrieverTask(
        examples=file_in(job.inputs["examples"], "retriever.parquet"),
        mined=file_in(mined, "negatives.parquet") if mined else None,
        expansions=expansions,
        retriever=job.inputs["retriever"],
        checkpoints=job.checkpoints,
        checkpoint=newest_checkpoint(job.checkpoints),
        out=job.out,
        options=options.training,
        encoding=options.encoding,
        fusion=options.fusion,
        seed=job.seed,
    )
    device = job.spec.runtime.get("device", "auto")
    if options.training.processes == 1:
        counts, history = train(task, device, job.progress)
    else:
        counts, history = launch(train, options.training.processes, device, task)
    job.counts |= counts | measures(history)
    write_log(job, history)
    _write_use(job, options)


def fetched_shards(job: Job, role: str) -> list[Path]:
    """Return the local folders of the shards of an input."""
    with ThreadPoolExecutor(FETCHED_AT_ONCE) as pool:
        return list(pool.map(job.store.local, job.store.shards(job.spec.inputs[role])))


def write_log(job: Job, history: "History") -> None:
    """Write the loss of each step, and the dev measure after it if there is one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    steps = range(1, len(history.losses) + 1)
    columns = {
        "step": pa.array(steps, pa.int32()),
        "loss": pa.array(history.losses, pa.float32()),
        "dev_ndcg_at_10": pa.array([history.dev.get(step) for step in steps], pa.float32()),
    }
    pq.write_table(pa.table(columns), job.out / "training_log.parquet", compression="zstd")


def measures(history: "History") -> dict[str, float]:
    """Summarise a training: the loss at its beginning and end, and the best step."""
    losses = history.losses
    tenth = math.ceil(len(losses) / 10)
    counts: dict[str, float] = {"steps": len(losses)}
    for name, some in (("first", losses[:tenth]), ("last", losses[-tenth:])):
        counts[f"loss/{name} tenth of the steps"] = round(math.fsum(some) / tenth, 4)
    if history.best_step is not None:
        counts["best step"] = history.best_step
        counts["dev nDCG@10/before training"] = round(history.dev[0], 4)
        counts["dev nDCG@10/best step"] = round(history.dev[history.best_step], 4)
    return counts


def _write_use(job: Job, options: TrainRetrieverOptions) -> None:
    """Write how queries are expanded, how they are searched with, and how training differed."""
    from expandr_core.encoders.fusion import RULES, separator_of
    from expandr_core.encoders.load import load_sentence_model

    config = json.loads((job.out / SENTENCE_CONFIG).read_bytes())
    fusion, trained = options.fusion, options.trained
    expanded = fusion.expansion_weight or trained.expansion_weight
    joined = "concatenate" in (fusion.method, trained.method)
    use = {
        "expansion": _expansion(job) if expanded else None,
        "fusion": identity(fusion)
        | {
            "normalize": config["similarity_fn_name"] == "cosine",
            **({"separator": separator_of(load_sentence_model(job.out, "cpu"))} if joined else {}),
            "rule": RULES[fusion.method],
        },
        "encoding": identity(options.encoding),
    }
    if trained != fusion:
        use["training"] = identity(trained) | {"rule": RULES[trained.method]}
    (job.out / USE).write_text(json.dumps(use, indent=1, ensure_ascii=False))


def _expansion(job: Job) -> dict[str, Any] | None:
    """Return prompt and sampling of the expansions in the training, or None if there were none.

    Of imported ones nobody knows that.
    """
    from expandr_core.generation.prompts import wording_of
    from expandr_core.stages import expand

    artifact = job.spec.inputs.get("expansions")
    if artifact and artifact.stage == "import_expansions":
        return {"imported": True}
    said = job.store.manifest(artifact.key).get("options") if artifact else None
    if not said:
        return None
    options = expand.ExpandOptions(**said)
    sampling = identity(options.sampling)
    del sampling["samples"]
    return {
        "prompt": options.prompt.name,
        "max_prompt_tokens": options.prompt.max_tokens,
        "engine": options.engine,
        "text": wording_of(options.prompt),
        "sampling": sampling,
    }
