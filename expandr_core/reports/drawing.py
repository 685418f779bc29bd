"""Drawing with matplotlib, without its global state: the same data give the same bytes of SVG."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any, Literal

from expandr_core.reports.palette import LIGHT, with_variables

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 5.2  # inches
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be found, copied and read aloud
    "svg.hashsalt": "expandr",
    "text.parse_math": False,
    "font.size": 9,
    "font.family": "sans-serif",
    "text.color": LIGHT["ink"],
    "axes.labelcolor": LIGHT["ink"],
    "axes.edgecolor": LIGHT["muted"],
    "axes.linewidth": 0.8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "figure.constrained_layout.use": True,
}


class Drawing:
    """A picture in the making.

    Attributes:
        figure: to draw on.
        svg: the result, once it is drawn.
    """

    def __init__(self, figure: "Figure"):
        """Begin."""
        self.figure, self.svg = figure, ""

    def axes(self, x: str, y: str, grid: Literal["x", "y"] = "y") -> "Axes":
        """Add axes with their names and units."""
        axes = self.figure.add_subplot()
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(True, axis=grid)
        return axes


@contextmanager
def drawing(name: str, title: str, about: str, height: float = 2.9) -> Iterator[Drawing]:
    """Draw a picture of WIDTH; at the end its `svg` is there.

    Args:
        name: of the picture, unique in a page.
        title: what it shows, for those who cannot see it.
        about: what there is to see.
        height: in inches.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_SETTINGS):
        made = Drawing(Figure(figsize=(WIDTH, height)))
        yield made
        made.figure.patch.set_alpha(0)
        for axes in made.figure.axes:
            axes.patch.set_alpha(0)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        made.figure.savefig(buffer, format="svg", metadata=nothing)
    made.svg = _inline(buffer.getvalue(), name, title, about)


def _inline(svg: str, name: str, title: str, about: str) -> str:
    """Make a picture part of a page: its ids are its own, its colours the page's."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'((?:href="|url\()#)', rf"\1{name}-", svg)
    body = svg.index(">") + 1
    box = re.search(r'viewBox="[^"]*"', svg[:body])
    said = f"<title id='{name}-t'>{escape(title)}</title><desc id='{name}-d'>{escape(about)}</desc>"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f"{box[0] if box else ''} role=\"img\" aria-labelledby='{name}-t {name}-d'>"
    )
    return with_variables(head + said + svg[body:])
