"""Train a retriever on batches that any number of processes share, so that a kill changes nothing.

Each process takes an equal share of a batch's rows, embeds it, and receives the vectors of all others:
each computes the loss of the whole batch, and its gradient with respect to its own vectors. So neither
the loss nor the weights depend on the number of processes, nor on how many texts are embedded at once,
except for rounding and for the draws of dropout.

The seed and the number of the step determine the order of the rows, dropout and the learning rate. A
checkpoint has the weights, the optimizer's state, the measures so far, and the best weights so far.
"""

import logging
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

from expandr_core.encoders.fusion import Fusion
from expandr_core.options.training import RetrieverTrainingOptions
from expandr_core.runtime.job import Progress
from expandr_core.seeding import derive_seed
from expandr_core.training.callbacks import all_finite, diverged
from expandr_core.training.checkpoints import read_checkpoint, write_checkpoint
from expandr_core.training.dev_metric import DevSet, measure
from expandr_core.training.distributed import gather, rank, shares, sum_gradients
from expandr_core.training.grad_cache import GradCache, TextBatch
from expandr_core.training.rows import Row, Rows

log = logging.getLogger(__name__)
MAX_GRADIENT_NORM = 1.0  # the default of transformers' Trainer
Weights = dict[str, Tensor]


class Prepared(NamedTuple):
    """This process's share of a batch.

    Attributes:
        texts: the tokenised texts of the share.
        labels: (rows of the share, texts of a row)
        share: the rows of the batch that make up the share.
        rows: number of rows in the whole batch.
    """

    texts: TextBatch
    labels: Tensor
    share: slice
    rows: int


class Loss(Protocol):
    """The loss of a whole batch."""

    @property
    def fusion(self) -> Fusion:
        """How a query is fused with its expansion."""
        ...

    def with_gradient(self, vectors: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and its gradient; see `contrastive.ContrastiveLoss`."""
        ...


@dataclass
class History:
    """The measures so far, and the best weights.

    Attributes:
        losses: loss of each step.
        dev: nDCG@10 of the dev queries by step; step 0 is before training.
        best_step: the step after which the weights were best.
        best: these weights, on the CPU; None in all processes but the first, or without dev queries.
    """

    losses: list[float] = field(default_factory=list)
    dev: dict[int, float] = field(default_factory=dict)
    best_step: int | None = None
    best: Weights | None = None


class RetrieverTrainer:
    """One training of one model."""

    def __init__(
        self,
        model: SentenceTransformer,
        rows: Rows,
        loss: Loss,
        options: RetrieverTrainingOptions,
        seed: int,
        checkpoints: Path,
        dev: tuple[DevSet, Fusion] | None = None,
        rate_option: str = "training.learning_rate",
    ):
        """Prepare a training; nothing is read or written yet.

        Args:
            model: the model to train, on its device.
            rows: the training rows.
            loss: loss of a batch; its tensors are on the model's device.
            options: options of the training.
            seed: seed of dropout.
            checkpoints: folder for the checkpoints.
            dev: held-out queries to find the best step on, and how they are searched with (`loss` may
                fuse otherwise); None to keep the last step.
            rate_option: the option to lower if the training diverges.
        """
        self.dev, self.rate_option = dev, rate_option
        self.model, self.rows, self.options = model, rows, options
        self.loss, self.seed, self.checkpoints = loss, seed, checkpoints
        self.encoder = GradCache(model, options.precision, options.mini_batch_size)
        self.batches = rows.batches(options)
        self.parameters = [weight for weight in model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=options.learning_rate, weight_decay=0.0
        )
        warmup = math.ceil(options.warmup_share * len(self.batches))
        self.schedule = get_linear_schedule_with_warmup(self.optimizer, warmup, len(self.batches))
        self.history = History()

    def train(self, report: Progress, checkpoint: Path | None) -> History:
        """Take all remaining steps; the model ends up with the last weights.

        Args:
            report: called after each step.
            checkpoint: the one to resume from, or None.

        Raises:
            DataError: if a loss, gradient or weight is not finite.
            RuntimeError: if the device runs out of memory.
        """
        if checkpoint:
            self._load(checkpoint)
        done, steps = len(self.history.losses), len(self.batches)
        report(done, steps, "steps")
        self.model.train()
        if not done:
            self._measure(0)
        with ThreadPoolExecutor(1) as pool:
            prepared = self.prepare(done) if done < steps else None
            for step in range(done + 1, steps + 1):
                assert prepared is not None
                after = pool.submit(self.prepare, step) if step < steps else None
                self._take(prepared, step)
                prepared = after.result() if after else None
                self._measure(step)
                if step % self.options.checkpoint_steps == 0 or step == steps:
                    self._save(step)
                report(step, steps, "steps")
        return self.history

    def prepare(self, number: int) -> Prepared:
        """Assemble and tokenise this process's share of a batch."""
        batch = self.batches[number]
        share = shares(len(batch))[rank()]
        rows = [self._as_encoded(self.rows.row(int(row))) for row in batch[share]]
        width = self.rows.width
        texts = self.encoder.tokenise([row.texts for row in rows], width)
        labels = torch.tensor([row.label for row in rows], dtype=torch.long).reshape(-1, width)
        return Prepared(texts, labels, share, len(batch))

    def _as_encoded(self, row: Row) -> Row:
        """Join the texts of query and expansion if the fusion does."""
        fusion, (query, expansion, *passages) = self.loss.fusion, row.texts
        if fusion.method != "concatenate" or expansion is None:
            return row
        text, _ = fusion.texts(query or "", [expansion])
        return Row([text, None, *passages], [row.label[0], -1, *row.label[2:]])

    def _take(self, batch: Prepared, step: int) -> None:
        """Take one step of the optimizer."""
        try:
            loss = self.gradients(batch, derive_seed(self.seed, step, rank()))
        except torch.OutOfMemoryError as error:
            raise RuntimeError(
                f"the memory of {self.model.device} does not suffice at step {step}; lower "
                f"training.mini_batch_size ({self.options.mini_batch_size})"
            ) from error
        norm = nn.utils.clip_grad_norm_(self.parameters, MAX_GRADIENT_NORM).item()
        self.optimizer.step()
        self.schedule.step()
        remedy = f"lower {self.rate_option} ({self.options.learning_rate:g})"
        for name, value in (("the loss", loss), ("the gradients' norm", norm)):
            if not math.isfinite(value):
                raise diverged(f"{name} is {value}", step, remedy)
        if not all_finite(self.parameters):
            raise diverged("a weight is not finite", step, remedy)
        self.history.losses.append(loss)
        self.optimizer.zero_grad()

    def gradients(self, batch: Prepared, seed: int) -> float:
        """Compute the gradients of a batch's loss, summed over all processes; return the loss."""
        embedded = self.encoder.embed(batch.texts, seed)
        own = self.encoder.arrange(embedded, batch.texts.positions)
        vectors = gather(own, batch.rows)
        labels = gather(batch.labels.to(own.device), batch.rows)
        loss, gradient = self.loss.with_gradient(vectors, labels)
        self.encoder.backward(batch.texts, embedded, gradient[batch.share], seed)
        sum_gradients(self.parameters)
        return loss.item()

    def _measure(self, step: int) -> None:
        """Measure on the dev queries if a measurement is due, and keep the best weights."""
        due = step % self.options.evaluation_steps == 0 or step == len(self.batches)
        if self.dev is None or not due:
            return
        score = measure(self.encoder, *self.dev)
        if rank():
            return
        log.info("dev nDCG@10 after %d steps: %.4f", step, score)
        best_step = self.history.best_step
        if step and (best_step is None or score > self.history.dev[best_step]):
            self.history.best_step = step
            self.history.best = {
                name: weight.detach().to("cpu", copy=True)
                for name, weight in self.model.state_dict().items()
            }
        self.history.dev[step] = score

    def _save(self, step: int) -> None:
        if not rank():
            state = {name: part.state_dict() for name, part in self._parts().items()}
            state["history"] = vars(self.history)
            write_checkpoint(self.checkpoints, step, state)

    def _load(self, checkpoint: Path) -> None:
        state = read_checkpoint(checkpoint)
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.history = History(**state["history"])

    def _parts(self) -> dict[str, Any]:
        """Return the parts of the training that have a state, by their names in a checkpoint."""
        return {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}
