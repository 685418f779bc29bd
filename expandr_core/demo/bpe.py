"""Train a byte-level BPE tokenizer, with the tokenizers library."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def train_bpe(
    texts: Iterable[str], vocabulary: int, special_tokens: Iterable[str] = (), lower: bool = False
) -> "Tokenizer":
    """Learn merges from texts; any other text can still be encoded, in the worst case byte by byte.

    Args:
        texts: read once; a pair of symbols that occurs only once is not merged.
        vocabulary: maximum number of tokens, including the special ones and 256 bytes.
        special_tokens: in the order of their ids 0, 1, 2, ...
        lower: ignore case.

    >>> tokenizer = train_bpe(["a dewcap", "a dewcap"], 300)
    >>> tokenizer.encode("a dewcap").tokens
    ['a', 'Ġdewcap']
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    if lower:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=list(special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
