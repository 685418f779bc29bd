"""The loss of a distilled query encoder: how far from the expanded query, and from positives."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from expandr_core.encoders.encode import Vectors
from expandr_core.encoders.fusion import Fusion
from expandr_core.options.distil import DistilLoss
from expandr_core.training.contrastive import contrastive_loss, false_negatives


@dataclass(frozen=True)
class DistillationLoss:
    """The loss of a batch of queries, from the vectors that the student gives them.

    Attributes:
        teacher: (queries, dimensions), to imitate.
        passages: (passages, dimensions) of the retriever, by number; None without a contrastive loss.
        positive_pairs: (pairs,) see `ContrastiveLoss`.
        fusion: scales the student's vectors.
        loss: see `distances`.
        contrastive_weight: of the contrastive loss.
        contrastive_temperature: divisor of the similarities.
    """

    teacher: Vectors
    passages: Vectors | None
    positive_pairs: Tensor
    fusion: Fusion
    loss: DistilLoss
    contrastive_weight: float
    contrastive_temperature: float

    def with_gradient(self, vectors: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch and its gradient with respect to the vectors.

        Args:
            vectors: (rows, texts of a row, dimensions) in float32; of each row only the first counts.
            labels: (rows, texts of a row), see `DistilRows.row`.

        Returns:
            The mean over the rows, a scalar, and the gradient, of the vectors' shape.
        """
        vectors = vectors.detach().requires_grad_()
        students = self.fusion.scaled(vectors[:, 0])
        targets = _take(self.teacher, labels[:, 0], students)
        loss = distances(students, targets, self.loss).mean()
        labelled = labels[:, 2] >= 0
        if self.passages is not None and labelled.any():
            contrast = self._contrast(students[labelled], labels[labelled], self.passages)
            loss = loss + self.contrastive_weight * labelled.float().mean() * contrast
        loss.backward()
        assert vectors.grad is not None
        return loss.detach(), vectors.grad

    def _contrast(self, students: Tensor, labels: Tensor, passages: Vectors) -> Tensor:
        """Return the mean contrastive loss of rows with a positive; see `ContrastiveLoss`."""
        own = torch.arange(len(labels), device=labels.device)
        numbers = labels[:, 2:].T.flatten()  # the positives come first
        masked = false_negatives(labels[:, 0], numbers, own, self.positive_pairs)
        vectors = _take(passages, numbers.clamp(min=0), students)
        return contrastive_loss(students, vectors, masked, own, self.contrastive_temperature)


def _take(vectors: Vectors, rows: Tensor, like: Tensor) -> Tensor:
    """Read rows of a mapped file onto the device of another tensor."""
    return torch.from_numpy(vectors[rows.cpu().numpy()]).to(like.device)


def distances(students: Tensor, targets: Tensor, loss: DistilLoss) -> Tensor:
    """Return how far each vector is from its target: (rows, dimensions) twice to (rows,).

    Between vectors of length 1 the squared distance is twice the other:

    >>> students, targets = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]])
    >>> distances(students, targets, "cosine"), distances(students, targets, "mse")
    (tensor([0.4000]), tensor([0.8000]))
    """
    if loss == "cosine":
        return 1 - F.cosine_similarity(students, targets)
    return (students - targets).square().sum(dim=1)
