"""What others wrote is shown as text: it neither paints the terminal nor moves in it."""

import io

from rich.console import Console

from expandr_cli.explain import _say


def test_a_text_neither_paints_the_terminal_nor_names_its_window():
    console = Console(file=io.StringIO(), width=80)
    _say(console, "a prompt", "\x1b[31mred\x1b]0;title\x07", "gr\u00fcn\t\u4e2d")
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "\x1b" not in shown and "\x07" not in shown
    assert "[31mred" in shown and "gr\u00fcn" in shown and "\u4e2d" in shown
