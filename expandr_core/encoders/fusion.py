"""The vector of an expanded query: one rule for training, mining, evaluation and search.

The paper's code trains on raw inner products but evaluates normalised vectors, and does not scale the
mean of two unit vectors back to length 1. Here `normalize` applies to both, and to the mean.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Fusion:
    """How the vectors of a query and of its expansions become one.

    Attributes:
        normalize: scale vectors, and their means, to length 1, so that inner products are cosines.
        expansion_weight: weight of the expansions, from 0 (the query alone) to 1 (paper: 0.5).
    """

    normalize: bool
    expansion_weight: float = 0.5

    def scaled(self, vectors: Tensor) -> Tensor:
        """Scale rows to length 1 if `normalize`; a row of zeros stays as it is."""
        return F.normalize(vectors, dim=1) if self.normalize else vectors

    def fuse(self, queries: Tensor, expansions: Tensor, counts: Tensor) -> Tensor:
        """Average each query's expansions, and average the result with the query by weight.

        Args:
            queries: (queries, dimensions), of any length.
            expansions: (texts, dimensions), of any length, in the order of the queries.
            counts: (queries,) number of expansions of each query; with 0, the query stays as it is.

        Returns:
            (queries, dimensions)

        >>> queries, expansions = torch.tensor([[2., 0.], [3., 0.]]), torch.tensor([[0., 4.]])
        >>> Fusion(normalize=False).fuse(queries, expansions, torch.tensor([1, 0])).tolist()
        [[1.0, 2.0], [3.0, 0.0]]
        >>> Fusion(True, 0.6).fuse(queries, expansions, torch.tensor([1, 0]))[0]
        tensor([0.5547, 0.8321])
        """
        queries, expansions = self.scaled(queries), self.scaled(expansions)
        owners = torch.repeat_interleave(counts)
        sums = torch.zeros_like(queries).index_add(0, owners, expansions)
        mean = self.scaled(sums / counts.clamp(min=1)[:, None])
        fused = (1 - self.expansion_weight) * queries + self.expansion_weight * mean
        return torch.where(counts[:, None] > 0, self.scaled(fused), queries)
