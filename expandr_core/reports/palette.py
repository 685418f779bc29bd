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
