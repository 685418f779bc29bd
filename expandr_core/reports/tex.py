"""Texts in LaTeX, for any of its engines: what pdflatex cannot set is written as its code point."""

import unicodedata

SPECIAL = {
    **{each: f"\\{each}" for each in "#$%&_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    **{each: f"{{{each}}}" for each in "-[]*"},  # no dash; nor options of \\\\ and \\item
    "\u2013": "--",
    "—": "---",
    "\u2212": "$-$",
    "→": r"$\to$",
    "←": r"$\leftarrow$",
    "±": r"$\pm$",
    "\u00d7": r"$\times$",
    "·": r"$\cdot$",
    "τ": r"$\tau$",
    "…": r"\ldots{}",
    "•": r"\textbullet{}",
    "“": "``",
    "”": "''",
    "„": r"\quotedblbase{}",
    "\u2018": "`",
    "\u2019": "'",
    "ß": r"\ss{}",
    "ł": r"\l{}",
    "Ł": r"\L{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
    "œ": r"\oe{}",
    "Œ": r"\OE{}",
    "\u0131": r"\i{}",
}
ACCENTS = {
    "\u0300": "`",
    "\u0301": "'",
    "\u0302": "^",
    "\u0303": "~",
    "\u0304": "=",
    "\u0306": "u",
    "\u0307": ".",
    "\u0308": '"',
    "\u030a": "r",
    "\u030b": "H",
    "\u030c": "v",
    "\u0327": "c",
    "\u0328": "k",
}
LONGEST = 20  # letters without a place where a line may break


def tex(value: object) -> str:
    r"""Escape a text for LaTeX; a line may break in what has no spaces.

    >>> print(tex("50 % of a_b & <i>"))
    50 \% of a\_b \& \textless{}i\textgreater{}
    >>> print(tex("Müller, 中"))
    M\"{u}ller, {[}U+4E2D{]}
    """
    pieces, unbroken = [], 0
    for each in " ".join(str(value).split()):
        unbroken = 0 if each == " " else unbroken + 1
        pieces.append(_letter(each))
        if unbroken == LONGEST:
            pieces.append(r"\hspace{0pt}")
            unbroken = 0
    return "".join(pieces)


def _letter(character: str) -> str:
    """Write one character."""
    if character in SPECIAL:
        return SPECIAL[character]
    if " " <= character <= "~":
        return character
    letter, *accents = unicodedata.normalize("NFD", character)
    if len(accents) == 1 and accents[0] in ACCENTS and letter.isascii():
        below = letter if accents[0] in "\u0327\u0328" or letter not in "ij" else f"\\{letter}"
        return f"\\{ACCENTS[accents[0]]}{{{below}}}"
    if unicodedata.category(character) in ("Cc", "Cf", "Zs"):
        return " " if character != "\u00ad" else ""
    return f"{{[}}U+{ord(character):04X}{{]}}"
