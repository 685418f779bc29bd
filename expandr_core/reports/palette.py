"""The colours of a report: Okabe and Ito's, which people with any colour vision can tell apart.

Pictures are drawn in the colours for light pages. In the SVG each becomes a CSS variable, so that the
page chooses: it is defined once, for light, dark and print.
"""

import re

LIGHT = {
    "ink": "#1b1f24",
    "muted": "#636c76",
    "grid": "#d8dee4",
    "blue": "#0072b2",
    "green": "#009e73",
    "orange": "#e69f00",
    "red": "#d55e00",
    "purple": "#cc79a7",
    "sky": "#56b4e9",
}
DARK = LIGHT | {
    "ink": "#e6edf3",
    "muted": "#9aa4ae",
    "grid": "#343b44",
    "blue": "#4ba6e0",
    "green": "#2fc296",
    "red": "#f0803c",
}
FAMILIES = {"reference": "muted", "base retriever": "blue", "control": "orange", "joint": "green"}
SERIES = ("blue", "green", "orange", "purple", "red", "sky", "muted")
STYLES = ("-", "--", ":")  # of the lines of one family
_FIXED = {"rejected": "purple", "chosen": "sky", "query only": "muted", "control": "orange",
          "untrained": "blue", "start": "blue"}  # fmt: skip
_ROUNDS = ("green", "purple", "sky", "red")


def css(colours: dict[str, str]) -> str:
    """Define colours as CSS variables.

    >>> css({"ink": "#1b1f24"})
    '--ink: #1b1f24;'
    """
    return " ".join(f"--{name}: {value};" for name, value in colours.items())


def with_variables(svg: str) -> str:
    """Replace the colours of a picture by the page's variables.

    >>> with_variables('<path style="stroke: #0072b2"/>')
    '<path style="stroke: var(--blue)"/>'
    """
    names = {value: name for name, value in LIGHT.items()}
    return re.sub("|".join(names), lambda found: f"var(--{names[found[0]]})", svg)


def looks_of(names: list[str]) -> list[tuple[str, str]]:
    """Return colour and line style of groups or trainings, by the colours of the families.

    >>> [style for _, style in looks_of(["start", "round 1", "untrained"])]
    ['-', '-', '--']
    """
    seen: dict[str, int] = {}
    looks, rounds = [], 0
    for name in names:
        colour = next((fixed for word, fixed in _FIXED.items() if word in name), "")
        if not colour:
            colour, rounds = _ROUNDS[rounds % len(_ROUNDS)], rounds + 1
        seen[colour] = seen.get(colour, -1) + 1
        looks.append((LIGHT[colour], STYLES[seen[colour] % len(STYLES)]))
    return looks
