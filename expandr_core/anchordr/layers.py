"""The layers of AnchorDR: fairseq's, with the norm after each sum and biases everywhere.

Names of parameters are those of the published file. Shapes: (texts, tokens, width) between layers,
(texts, heads, tokens, tokens) within attention.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from expandr_core.anchordr.tokenizer import PAD

MAX_TOKENS = 1024  # number of positions
BUCKETS = 32  # rows of the table of relative positions; the last one is never used
# The distances at which a bucket starts: at each one up to 9, then logarithmically up to 127.
_BUCKET_STARTS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 18, 27, 39, 58, 86)


@dataclass(frozen=True)
class AnchorDRConfig:
    """Sizes, named as in the published config.json; the defaults are the published model's."""

    vocab_size: int = 33280
    d_model: int = 768
    d_ff: int = 3072
    num_heads: int = 12
    num_layers: int = 12
    num_decoder_layers: int = 12
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-5
    max_seq_length: int = 512


def relative_bucket(distances: Tensor) -> Tensor:
    """Return the row in the table of relative positions for each distance between two tokens.

    >>> relative_bucket(torch.tensor([-500, -9, -1, 0, 1, 8, 11, 12, 86, 500])).tolist()
    [0, 6, 14, 15, 16, 23, 24, 25, 30, 30]
    """
    starts = torch.tensor(_BUCKET_STARTS, device=distances.device)
    return 15 + distances.sign() * torch.bucketize(distances.abs(), starts, right=True)


class Attention(nn.Module):
    """Attention with several heads; in the encoder with a bias by relative position."""

    def __init__(self, config: AnchorDRConfig, relative: bool):
        """Make the projections of queries, keys, values and output."""
        super().__init__()
        self.heads, self.dropout = config.num_heads, config.dropout_rate
        self.q = nn.Linear(config.d_model, config.d_model)
        self.k = nn.Linear(config.d_model, config.d_model)
        self.v = nn.Linear(config.d_model, config.d_model)
        self.o = nn.Linear(config.d_model, config.d_model)
        if relative:
            self.relative_attention_bias = nn.Embedding(BUCKETS, config.num_heads)

    def forward(
        self, hidden: Tensor, attended: Tensor, mask: Tensor, buckets: Tensor | None = None
    ) -> Tensor:
        """Attend from each token of `hidden` to those of `attended`.

        Args:
            hidden: (texts, tokens, width)
            attended: (texts, attended tokens, width)
            mask: added to the scores, in four dimensions.
            buckets: of the distances from 1 - tokens to tokens - 1; None without relative positions.
        """
        q, k, v = self._heads(self.q(hidden)), self._heads(self.k(attended)), self.v(attended)
        if buckets is not None:
            mask = mask + self._relative_bias(buckets)
        dropout = self.dropout if self.training else 0.0
        attention = scaled_dot_product_attention(
            q, k, self._heads(v), mask.to(q.dtype), dropout_p=dropout
        )
        return self.o(attention.transpose(1, 2).flatten(2))

    def _heads(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _relative_bias(self, buckets: Tensor) -> Tensor:
        """Return the bias of each head from the row's token to the column's, (heads, rows, columns)."""
        # the window that starts at distance 1 - tokens + n is the row of the nth token from the end
        of_distance = self.relative_attention_bias(buckets).t()  # (heads, 2 * tokens - 1)
        return of_distance.unfold(-1, (len(buckets) + 1) // 2, 1).flip(1)


class SelfAttentionLayer(nn.Module):
    """Attention within a text."""

    def __init__(self, config: AnchorDRConfig, relative: bool):
        """Make the layer, with relative positions or without."""
        super().__init__()
        self.SelfAttention = Attention(config, relative)
        self.layer_norm = nn.LayerNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, hidden: Tensor, mask: Tensor, buckets: Tensor | None = None) -> Tensor:
        """Add the attention's output, then normalise."""
        attention = self.SelfAttention(hidden, hidden, mask, buckets)
        return self.layer_norm(hidden + self.dropout(attention))


class CrossAttentionLayer(nn.Module):
    """Attention of the decoder to the encoder's output."""

    def __init__(self, config: AnchorDRConfig):
        """Make the layer."""
        super().__init__()
        self.EncDecAttention = Attention(config, relative=False)
        self.layer_norm = nn.LayerNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, hidden: Tensor, encoded: Tensor, mask: Tensor) -> Tensor:
        """Add the attention's output, then normalise."""
        return self.layer_norm(hidden + self.dropout(self.EncDecAttention(hidden, encoded, mask)))


class FeedForwardLayer(nn.Module):
    """Two linear maps with a rectifier in between, with residual and norm."""

    def __init__(self, config: AnchorDRConfig):
        """Create the layer."""
        super().__init__()
        maps: dict[str, nn.Module] = {
            "wi": nn.Linear(config.d_model, config.d_ff),
            "relu": nn.ReLU(),
            "dropout": nn.Dropout(config.dropout_rate),
            "wo": nn.Linear(config.d_ff, config.d_model),
        }
        self.DenseReluDense = nn.Sequential(OrderedDict(maps))
        self.layer_norm = nn.LayerNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, hidden: Tensor) -> Tensor:
        """Add the maps' output, then normalise."""
        return self.layer_norm(hidden + self.dropout(self.DenseReluDense(hidden)))


class Stack(nn.Module):
    """The common part of encoder and decoder: positions, the first norm, and blocks of layers."""

    def __init__(self, config: AnchorDRConfig, blocks: list[list[nn.Module]]):
        """Store the blocks, and create the table of positions."""
        super().__init__()
        self.pos_embed = nn.Embedding(PAD + 1 + MAX_TOKENS, config.d_model)
        self.first_layer_norm = nn.LayerNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.dropout_rate)
        named = [nn.ModuleDict({"layer": nn.ModuleList(layers)}) for layers in blocks]
        self.block = nn.ModuleList(named)

    def at_positions(self, embedded: Tensor, is_token: Tensor) -> Tensor:
        """Add each token's position, counted from 2 (padding has 1), and normalise."""
        positions = is_token.cumsum(1) * is_token + PAD
        return self.dropout(self.first_layer_norm(embedded + self.pos_embed(positions)))


class Encoder(Stack):
    """The stack that reads a text."""

    def __init__(self, config: AnchorDRConfig):
        """Create its blocks."""
        blocks: list[list[nn.Module]] = [
            [SelfAttentionLayer(config, relative=True), FeedForwardLayer(config)]
            for _ in range(config.num_layers)
        ]
        super().__init__(config, blocks)

    def forward(self, embedded: Tensor, is_token: Tensor) -> Tensor:
        """Return (texts, tokens, width), from token embeddings and a mask of ones and zeros."""
        hidden = self.at_positions(embedded, is_token)
        mask, length = _barred(is_token, hidden), embedded.shape[1]
        buckets = relative_bucket(torch.arange(1 - length, length, device=hidden.device))
        for block in self.block:
            attend, transform = block.get_submodule("layer").children()
            hidden = transform(attend(hidden, mask, buckets))
        return hidden


class Decoder(Stack):
    """The stack that answers with one token."""

    def __init__(self, config: AnchorDRConfig):
        """Create its blocks."""
        blocks: list[list[nn.Module]] = [
            [
                SelfAttentionLayer(config, relative=False),
                CrossAttentionLayer(config),
                FeedForwardLayer(config),
            ]
            for _ in range(config.num_decoder_layers)
        ]
        super().__init__(config, blocks)

    def forward(self, embedded: Tensor, encoded: Tensor, is_token: Tensor) -> Tensor:
        """Return (texts, width), from the start token's embedding and the encoder's output."""
        hidden = self.at_positions(embedded, torch.ones_like(is_token[:, :1]))
        mask, alone = _barred(is_token, hidden), hidden.new_zeros(1, 1, 1, 1)
        for block in self.block:
            attend_itself, attend, transform = block.get_submodule("layer").children()
            hidden = transform(attend(attend_itself(hidden, alone), encoded, mask))
        return hidden[:, 0]


def _barred(is_token: Tensor, like: Tensor) -> Tensor:
    """Return the mask that, added to the scores, hides the padding: (texts, 1, 1, tokens)."""
    nothing = torch.zeros_like(is_token, dtype=like.dtype)
    return nothing.masked_fill(is_token == 0, float("-inf"))[:, None, None]
