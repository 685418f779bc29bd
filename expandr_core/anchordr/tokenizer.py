"""AnchorDR's tokenizer: it cuts the words of a text into the pieces of its SentencePiece model.

It was published as a slow tokenizer with a copy of fairseq's dictionary, whose ids equal those of
`sp.model`, so that file is enough. Two differences: a blank text is `<s> </s>` (published: with an
unknown piece in between), and the names of special tokens in a text are plain text (published: they
become special tokens).
"""

import re
import unicodedata
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from expandr_core.errors import DataError

BOS, PAD, EOS = 0, 1, 2
FILE = "sp.model"
_PLAIN = str.maketrans("\u2018\u2019\u00b4\u201c\u201d\u2014\u2013", "'''\"\"--")
_ENDINGS = re.compile(r"' ([smdtSMDT]|ll|re|ve)\b")
_CAPITAL_ENDINGS = re.compile(r"' (LL|RE|VE)\b")


def plain_words(text: str) -> str:
    """Return a text in lower case, with spaces between its words and the punctuation around them.

    Punctuation within a word stays, as does the apostrophe of an ending ('s, 'll).

    >>> plain_words("“Don't panic” -- it's (only) a test.")
    '" don\\'t panic " -- it\\'s ( only ) a test .'
    >>> plain_words("the dog's e-mail: a@b.com")
    "the dog's e-mail : a@b.com"
    """
    text = text.strip().replace("``", '"').replace("''", '"').translate(_PLAIN)
    words = " ".join(part for word in text.split() for part in _peeled(word))
    words = _CAPITAL_ENDINGS.sub(r"'\1 ", _ENDINGS.sub(r"'\1", words))
    return " ".join(words.split()).lower()


def _peeled(word: str) -> list[str]:
    """Cut the punctuation off both ends of a word; punctuation alone stays whole."""
    start = len(list(takewhile(_is_punctuation, word)))
    if start == len(word):
        return [word]
    end = len(word) - len(list(takewhile(_is_punctuation, reversed(word))))
    return [part for part in (word[:start], word[start:end], word[end:]) if part]


def _is_punctuation(letter: str) -> bool:
    """Tell whether a character is punctuation, or a symbol of ASCII."""
    is_symbol = letter.isascii() and letter.isprintable() and not letter.isalnum() and letter != " "
    return is_symbol or unicodedata.category(letter).startswith("P")


class AnchorDRTokenizer:
    """Texts to ids: `<s>` (0), the pieces, `</s>` (2)."""

    def __init__(self, path: Path):
        """Read a SentencePiece model.

        Args:
            path: AnchorDR's `sp.model`, or another model whose ids 0 to 2 are control symbols.

        Raises:
            DataError: if it cannot be read, or a text could produce the special ids.
        """
        import sentencepiece

        self.model = path.read_bytes()
        try:
            self.pieces = sentencepiece.SentencePieceProcessor(model_proto=self.model)
        except RuntimeError as error:
            raise DataError(
                f"{path}: not a SentencePiece model ({error}); get the file again from the model"
            ) from error
        for special in (BOS, PAD, EOS):
            if not self.pieces.IsControl(special):
                raise DataError(
                    f"{path}: id {special} is the piece {self.pieces.IdToPiece(special)!r}, but "
                    "AnchorDR needs ids 0 to 2 for <s>, <pad> and </s>; use the model's own sp.model"
                )

    def __len__(self) -> int:
        """Return the number of pieces, special ones included."""
        return self.pieces.GetPieceSize()

    def __call__(self, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
        """Return the ids of each text, cut at the end to at most `max_tokens`."""
        encoded = self.pieces.EncodeAsIds([plain_words(text) for text in texts])
        return [[BOS, *ids[: max_tokens - 2], EOS] for ids in encoded]

    def save(self, folder: Path) -> None:
        """Write the SentencePiece model into a folder."""
        (folder / FILE).write_bytes(self.model)
