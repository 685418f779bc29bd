"""The loss of the retriever: the expanded query must be closest to its positive.

The paper trains the retriever with a cross-entropy over the passages of a batch. Here, unlike in its
code, temperature and normalisation have an effect, and a known positive of a query is not pushed away
from it just because another row brought it into the batch.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from expandr_core.encoders.fusion import Fusion
from expandr_core.training.hard_negatives import PASSAGES

QUERIES_AT_ONCE = 512  # bounds the memory of the similarities of a large batch


def pair_numbers(query_ids: Tensor, passage_ids: Tensor) -> Tensor:
    """Number (query, passage) pairs, of any shape that broadcasts; below 0 for no passage."""
    return torch.where(passage_ids < 0, -1, query_ids * PASSAGES + passage_ids)


def false_negatives(
    query_ids: Tensor, passage_ids: Tensor, own: Tensor, positive_pairs: Tensor
) -> Tensor:
    """Tell which passages of a batch must not count as negatives of which queries.

    These are all known positives of a query except the one in `own` (such as its positive once more,
    from another row, or one that another query brought), and the slots that are empty because a query
    has too few hard negatives.

    Args:
        query_ids: (queries,) numbers of the queries.
        passage_ids: (columns,) numbers of the passages, below 0 for an empty slot.
        own: (queries,) column of each query's own positive.
        positive_pairs: (pairs,) sorted `pair_numbers` of all known positives.

    Returns:
        (queries, columns) of bool, False for each query's own positive.

    >>> pairs = pair_numbers(torch.tensor([0, 0, 1]), torch.tensor([5, 6, 7]))
    >>> passage_ids, own = torch.tensor([5, 7, 6, -1]), torch.tensor([0, 1])
    >>> false_negatives(torch.tensor([0, 1]), passage_ids, own, pairs).int()
    tensor([[0, 0, 1, 1],
            [0, 0, 0, 1]], dtype=torch.int32)
    """
    pairs = pair_numbers(query_ids[:, None], passage_ids[None, :])
    # a pair is a known positive if it stands where a search among the sorted ones ends
    positions = torch.searchsorted(positive_pairs, pairs).clamp(max=len(positive_pairs) - 1)
    masked = (positive_pairs[positions] == pairs) | (pairs < 0)
    return masked.scatter(1, own[:, None], False)


def contrastive_loss(
    queries: Tensor, passages: Tensor, masked: Tensor, own: Tensor, contrastive_temperature: float
) -> Tensor:
    """Return the mean cross-entropy of picking each query's positive among the passages of a batch.

    Args:
        queries: (queries, dimensions), fused with their expansions.
        passages: (columns, dimensions), positives and hard negatives.
        masked: (queries, columns) of bool, True to leave a passage out.
        own: (queries,) column of each query's own positive.
        contrastive_temperature: divisor of the similarities.

    Equal similarities cost ln n for n passages:

    >>> nothing, own = torch.zeros(2, 4).bool(), torch.tensor([0, 1])
    >>> contrastive_loss(torch.ones(2, 3), torch.ones(4, 3), nothing, own, 0.02).exp()
    tensor(4.)
    """
    similarities = queries @ passages.T / contrastive_temperature  # (queries, columns)
    return F.cross_entropy(similarities.masked_fill(masked, -torch.inf), own)


@dataclass(frozen=True)
class ContrastiveLoss:
    """`contrastive_loss` of a whole batch, from the vectors of its texts as the model returns them.

    Attributes:
        positive_pairs: (pairs,) sorted `pair_numbers` of all known positives.
        fusion: how a query is fused with its expansion.
        contrastive_temperature: divisor of the similarities.
    """

    positive_pairs: Tensor
    fusion: Fusion
    contrastive_temperature: float

    def with_gradient(self, vectors: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch and its gradient with respect to the vectors.

        Args:
            vectors: (rows, texts of a row, dimensions) in float32; finite where there is no text.
            labels: (rows, texts of a row), see `rows.Row`.

        Returns:
            The loss, a scalar, and the gradient, of the vectors' shape.
        """
        # block by block of queries, since only the gradient of a block's similarities must be kept
        vectors = vectors.detach().requires_grad_()
        losses = []
        for rows in torch.arange(len(vectors), device=vectors.device).split(QUERIES_AT_ONCE):
            loss = self._of_rows(vectors, labels, rows) * (len(rows) / len(vectors))
            loss.backward()
            losses.append(loss.detach())
        assert vectors.grad is not None
        return torch.stack(losses).sum(), vectors.grad

    def _of_rows(self, vectors: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        """Return the mean loss of some queries against the passages of all rows."""
        expanded = labels[rows, 1] >= 0
        expansions = vectors[rows, 1][expanded]
        queries = self.fusion.fuse(vectors[rows, 0], expansions, expanded.long())
        # all positives come first, so the column of a row's positive is the number of the row
        passages = self.fusion.scaled(vectors[:, 2:].transpose(0, 1).flatten(0, 1))
        passage_ids = labels[:, 2:].T.flatten()
        masked = false_negatives(labels[rows, 0], passage_ids, rows, self.positive_pairs)
        return contrastive_loss(queries, passages, masked, rows, self.contrastive_temperature)
