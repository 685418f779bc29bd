"""sentence-transformers' trainer, set up so that a kill changes nothing and nothing is printed.

All passes over the examples are one "epoch" of the trainer, whose order is fixed beforehand. So a
resumed training skips exactly what it has seen.
"""

import math
from dataclasses import dataclass
from typing import Any, cast

from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback

from expandr_core.contrastive import ContrastiveLoss
from expandr_core.encoder import normalizes
from expandr_core.fusion import Fusion
from expandr_core.stage import Job
from expandr_core.training import ProgressCallback
from expandr_core.training_rows import TrainingRows


@dataclass
class RowCollator(SentenceTransformerDataCollator):
    """Put the rows of a batch together from their numbers, then tokenise them."""

    rows: TrainingRows | None = None

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the tokens of each column, and the labels."""
        assert self.rows is not None
        return super().__call__([self.rows.row(feature["row"]) for feature in features])


def batches_in_order(dataset: Dataset, **arguments: Any) -> DefaultBatchSampler:
    """Cut the dataset into batches as it stands."""
    return DefaultBatchSampler(cast(Any, SequentialSampler(cast(Any, dataset))), **arguments)


class CardlessTrainer(SentenceTransformerTrainer):
    """A trainer that writes no model card."""

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Do nothing: a model card has dates and samples of the data."""


def make_trainer(
    job: Job, model: SentenceTransformer, rows: TrainingRows, seed: int
) -> CardlessTrainer:
    """Build the trainer of a retriever.

    Args:
        job: `options` as in `stages/train_retriever.py`; `checkpoints` is where these go.
        model: what to train, on its device.
        rows: what to train on.
        seed: of dropout.
    """
    import torch

    options = job.options
    on_gpu = model.device.type == "cuda"
    steps = math.ceil(rows.examples * rows.passes / options.batch_size)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(job.checkpoints),
        num_train_epochs=1,
        per_device_train_batch_size=options.batch_size,
        batch_sampler=batches_in_order,
        learning_rate=options.learning_rate,
        warmup_steps=math.ceil(options.warmup_share * steps),
        optim="adamw_torch",
        bf16=on_gpu,
        use_cpu=not on_gpu,
        seed=seed % 2**32,
        save_steps=options.checkpoint_steps,
        save_total_limit=2,
        logging_steps=1,  # a mean over several steps would not survive a kill between them
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
    )
    assert arguments.device is not None  # sets the next
    arguments._n_gpu = 1  # several would silently multiply the batch
    trainer = CardlessTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"row": rows.order()}),
        loss=ContrastiveLoss(
            model,
            torch.from_numpy(rows.pools.positive_pairs),
            expanded=rows.expansions is not None,
            fusion=Fusion(normalizes(model, options.encoding), options.expansion_weight),
            contrastive_temperature=options.contrastive_temperature,
        ),
        data_collator=RowCollator(preprocess_fn=model.preprocess, rows=rows),
        callbacks=[ProgressCallback(job)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
