"""The words of a text in any script, for BM25 and the audits.

In scripts with spaces a word is a run of letters, digits and their marks. Han, Hiragana, Katakana,
Bopomofo, Hangul, Yi and the scripts of South East Asia (Thai, Lao, Khmer, Myanmar, Javanese, Balinese
and related ones) do not separate words by spaces. There every two adjacent characters form a word, as
in Lucene's CJK analyser, and so does a character that stands alone; marks belong to their character.
Full-width and half-width forms are equal, and so are a character, its radical sign and its variants.
"""

import functools
import itertools
import unicodedata
from typing import Any

_SPACELESS = (
    r"[\p{Script=Han}\p{Script=Hira}\p{Script=Kana}\p{Script=Bopo}\p{Script=Hang}\p{Script=Yi}"
    r"\p{Script=Java}\p{Script=Bali}"
    r"\p{Line_Break=SA}ー&&[\p{L}\p{N}]]"
)
_MARK = r"[\p{M}--[\uFE00-\uFE0F]]"  # not those that choose between a sign's text and its picture
_WORD = rf"[[\p{{L}}\p{{N}}_]--{_SPACELESS}]"
_FORMS = "[\u2e80-\u2fd5\uff01-\uffee]+"  # radicals, full and half width
_SELECTORS = rf"(?<={_SPACELESS})[\uFE00-\uFE0F\U000E0100-\U000E01EF]+"


@functools.cache
def _pattern(text: str) -> Any:
    import regex  # slow to import

    return regex.compile(text, regex.VERSION1)


def terms(text: str, shortest: int = 1) -> list[str]:
    """Return the words of a text in order.

    Args:
        text: not case-folded here.
        shortest: drops words with fewer characters, in scripts with spaces.

    >>> terms("the bird's 3 songs", shortest=2)
    ['the', 'bird', 'songs']
    >>> terms("iPhone用の血糖値")
    ['iPhone', '用の', 'の血', '血糖', '糖値']
    """
    if text.isascii():
        found = _pattern(r"\w+").findall(text)
        return [word for word in found if len(word) >= shortest]
    text = _pattern(_FORMS).sub(lambda run: unicodedata.normalize("NFKC", run[0]), text)
    text = _pattern(_SELECTORS).sub("", unicodedata.normalize("NFC", text))
    words = []
    runs = rf"({_WORD}[{_WORD}{_MARK}]*)|((?:{_SPACELESS}{_MARK}*)+)"
    for run in _pattern(runs).finditer(text):
        if run[1]:
            words += [run[1]] if len(run[1]) >= shortest else []
        else:
            characters = _pattern(rf"{_SPACELESS}{_MARK}*").findall(run[2])
            words += map("".join, itertools.pairwise(characters))
            words += characters if len(characters) == 1 else []
    return words


def count_words(text: str) -> int:
    """Count the words of a text; in a script without spaces each character counts as one.

    >>> count_words("it's the  bird's song"), count_words("鳥の歌 is a song")
    (4, 6)
    """
    if text.isascii():
        return len(text.split())
    before = _pattern(rf"{_SPACELESS}").sub(r" \g<0>", text)
    return len(_pattern(rf"({_SPACELESS}{_MARK}*)(?={_WORD})").sub(r"\1 ", before).split())
