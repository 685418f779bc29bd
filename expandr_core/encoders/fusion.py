"""The vector of an expanded query: one rule for training, mining, evaluation and search.

The paper's code trains on raw inner products but evaluates normalised vectors, and does not scale the
mean of two unit vectors back to length 1. Here `normalize` applies to both, and to the mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from expandr_core.errors import DataError
from expandr_core.options.retriever import FusionMethod, FusionOptions

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# what the folder of a trained retriever says about the methods
RULES: dict[FusionMethod, str] = {
    "vector": "scale each vector to length 1 if normalize, average the expansions' vectors and "
    "scale the mean likewise; expansion_weight of it and the rest of the query's vector, "
    "scaled likewise, is searched with",
    "hyde": "average the vectors of the n expansions and of the query as the model returns them, each "
    "with weight 1 / (n + 1), and scale the mean to length 1 if normalize (HyDE: Gao et al., 2023); "
    "with expansion_weight 1, the expansions alone",
    "concatenate": "join the query and its expansions, in order, by the separator, and encode the text "
    "as a query, cut at its end (Query2Doc: Wang et al., 2023); with expansion_weight 1, the "
    "expansions alone",
    "rrf": "search with the query and with each expansion, encoded as a passage; the score of a passage "
    "is the sum of 1 / (60 + rank) over the rankings that it is in, down to the depth that is asked for "
    "(Cormack et al., 2009; Exp4Fuse: Liu and Zhang, 2025); with expansion_weight 1, the expansions "
    "alone",
}


@dataclass(frozen=True)
class Fusion:
    """How the vectors of a query and of its expansions become one.

    Attributes:
        normalize: scale vectors, and their means, to length 1, so that inner products are cosines.
        expansion_weight: weight of the expansions, from 0 (the query alone) to 1 (paper: 0.5).
        method: "hyde" averages the query with its expansions as if it were one more, before anything
            is scaled; any weight between 0 and 1 then means the same. "concatenate" joins the texts,
            and has no expansions left to fuse. The others average by weight.
        separator: stands between joined texts.
    """

    normalize: bool
    expansion_weight: float = 0.5
    method: FusionMethod = "vector"
    separator: str = " "

    @classmethod
    def of(cls, model: "SentenceTransformer", normalize: bool, options: FusionOptions) -> "Fusion":
        """Fuse as the options say, for a retriever.

        Raises:
            DataError: if the texts must be joined, and the retriever's tokenizer would cut the query.
        """
        separator = separator_of(model) if options.method == "concatenate" else " "
        return cls(normalize, options.expansion_weight, options.method, separator)

    def texts(self, query: str, expansions: Sequence[str]) -> tuple[str, list[str]]:
        """Return what to encode as a query, and what as passages to fuse with it.

        The query comes first in a joined text, so one that is too long loses the end of its expansions.

        >>> Fusion(True, 0.5, "concatenate", "[SEP]").texts("dust?", ["Grey.", "Fine."])
        ('dust?[SEP]Grey.[SEP]Fine.', [])
        >>> Fusion(True, 1, "concatenate").texts("dust?", ["Grey.", "Fine."])
        ('Grey. Fine.', [])
        >>> Fusion(True).texts("dust?", ["Grey."])
        ('dust?', ['Grey.'])
        """
        if self.method != "concatenate":
            return query, list(expansions)
        if not expansions or self.expansion_weight == 0:
            return query, []
        own = [] if self.expansion_weight == 1 else [query]
        return self.separator.join([*own, *expansions]), []

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
        >>> both = torch.tensor([[0., 4.], [0., 8.]])
        >>> Fusion(normalize=False, method="hyde").fuse(queries[:1], both, torch.tensor([2]))
        tensor([[0.6667, 4.0000]])
        """
        owners = torch.repeat_interleave(counts)
        if self.method == "hyde":
            own = 0 if self.expansion_weight == 1 else 1  # the query counts as one more document
            sums = (own * queries).index_add(0, owners, expansions)
            alone = (counts == 0) | (self.expansion_weight == 0)
            mean = sums / (counts + own).clamp(min=1)[:, None]
            return self.scaled(torch.where(alone[:, None], queries, mean))
        queries, expansions = self.scaled(queries), self.scaled(expansions)
        sums = torch.zeros_like(queries).index_add(0, owners, expansions)
        mean = self.scaled(sums / counts.clamp(min=1)[:, None])
        fused = (1 - self.expansion_weight) * queries + self.expansion_weight * mean
        return torch.where(counts[:, None] > 0, self.scaled(fused), queries)


def separator_of(model: "SentenceTransformer") -> str:
    """Return what stands between the texts that become one: the tokenizer's separator, or a space.

    Raises:
        DataError: if the tokenizer cuts long texts at their beginning, where the query is.
    """
    first: Any = model[0]
    routes = getattr(first, "sub_modules", {})  # of a router, which has an encoder for queries
    tokenizer = getattr(routes["query"][0] if "query" in routes else first, "tokenizer", None)
    if getattr(tokenizer, "truncation_side", "right") == "left":
        raise DataError(
            "the retriever's tokenizer cuts long texts at their beginning, where the query is; set its "
            "truncation_side to 'right', or retriever.fusion.method to another than 'concatenate'"
        )
    return getattr(tokenizer, "sep_token", None) or " "
