"""The loss of the retriever: the expanded query must be closest to its own positive.

The paper's Eq. for the retriever is a cross-entropy over the passages of a batch. Here, unlike in
its code, temperature and normalisation are real, and passages known to be relevant to a query are
not pushed away from it just because another row of the batch brought them along.
"""

import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from expandr_core.fusion import Fusion
from expandr_core.hard_negatives import PASSAGES


def pair_numbers(query_ids: Tensor, passage_ids: Tensor) -> Tensor:
    """Number (query, passage) pairs, of any shape that broadcasts; below 0 for no passage."""
    return torch.where(passage_ids < 0, -1, query_ids * PASSAGES + passage_ids)


def false_negatives(query_ids: Tensor, passage_ids: Tensor, positive_pairs: Tensor) -> Tensor:
    """Tell which passages of a batch must not count as negatives of which queries.

    These are a query's other known positives (its own positive once more, in another row; the
    positive of another row of the same query; a positive of it that another query brought), and the
    places left empty where a query has too few hard negatives.

    Args:
        query_ids: (batch,) numbers of the queries.
        passage_ids: (columns,) numbers of the passages, below 0 for an empty place; column i is the
            positive of row i.
        positive_pairs: (pairs,) sorted `pair_numbers` of all known positives.

    Returns:
        (batch, columns) of bool, False for each row's own positive.

    >>> pairs = pair_numbers(torch.tensor([0, 0, 1]), torch.tensor([5, 6, 7]))
    >>> false_negatives(torch.tensor([0, 1]), torch.tensor([5, 7, 6, -1]), pairs).int()
    tensor([[0, 0, 1, 1],
            [0, 0, 0, 1]], dtype=torch.int32)
    """
    pairs = pair_numbers(query_ids[:, None], passage_ids[None, :])
    places = torch.searchsorted(positive_pairs, pairs).clamp(max=len(positive_pairs) - 1)
    masked = (positive_pairs[places] == pairs) | (pairs < 0)
    return masked.fill_diagonal_(False)


def contrastive_loss(
    queries: Tensor, passages: Tensor, masked: Tensor, contrastive_temperature: float
) -> Tensor:
    """Mean cross-entropy of picking each query's positive among the passages of the batch.

    Args:
        queries: (batch, dimensions), fused with their expansions.
        passages: (columns, dimensions); column i is the positive of row i, the rest are hard
            negatives.
        masked: (batch, columns) of bool; these are left out.
        contrastive_temperature: the similarities are divided by it.

    Equal similarities cost ln n for n passages:

    >>> contrastive_loss(torch.ones(2, 3), torch.ones(4, 3), torch.zeros(2, 4).bool(), 0.02).exp()
    tensor(4.)
    """
    similarities = queries @ passages.T / contrastive_temperature  # (batch, columns)
    similarities = similarities.masked_fill(masked, -torch.inf)
    return F.cross_entropy(similarities, torch.arange(len(queries), device=queries.device))


class ContrastiveLoss(nn.Module):
    """`contrastive_loss` of a batch, in the form that sentence-transformers' trainer calls."""

    def __init__(
        self,
        model: SentenceTransformer,
        positive_pairs: Tensor,
        *,
        expanded: bool,
        fusion: Fusion,
        contrastive_temperature: float,
    ):
        """Keep the model where the trainer looks for it.

        Args:
            model: the retriever.
            positive_pairs: (pairs,) sorted `pair_numbers` of all known positives.
            expanded: the third text of a row is the expansion.
            fusion: of a query with its expansion.
            contrastive_temperature: the similarities are divided by it.
        """
        super().__init__()
        self.model = model
        self.expanded = expanded
        self.fusion = fusion
        self.contrastive_temperature = contrastive_temperature
        self.positive_pairs: Tensor
        self.register_buffer("positive_pairs", positive_pairs, persistent=False)

    def forward(self, features: list[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """Return the loss.

        Args:
            features: tokens of query, positive, (expansion,) hard negatives; each of the batch.
            labels: (batch, 3 + hard negatives): the query's number, 1 if it has an expansion, and
                the numbers of positive and hard negatives, below 0 for an empty place.
        """
        vectors = [self.model(tokens)["sentence_embedding"] for tokens in features]
        with torch.autocast(labels.device.type, enabled=False):  # bf16 is too coarse for softmax
            queries, positives, *rest = [each.float() for each in vectors]
            if self.expanded:
                there = labels[:, 1] > 0
                queries = self.fusion.fuse(queries, rest.pop(0)[there], there.long())
            else:
                queries = self.fusion.scaled(queries)
            passages = self.fusion.scaled(torch.cat([positives, *rest]))
            masked = false_negatives(labels[:, 0], labels[:, 2:].T.reshape(-1), self.positive_pairs)
            return contrastive_loss(queries, passages, masked, self.contrastive_temperature)
