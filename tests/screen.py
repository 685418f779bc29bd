"""A terminal of 80 columns: runs a program in it, and draws what the program has written."""

import os
import pty
import re
import struct
import subprocess
import sys
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

_CODE = re.compile(r"\x1b\[\??(\d*)[;\d]*([A-Za-z])")


def written_by(program: str, columns: int = 80) -> str:
    """Run a Python program in a terminal; return all that it has written, with the terminal's codes."""
    ours, theirs = pty.openpty()
    ioctl(theirs, TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {
        **os.environ,
        "TERM": "xterm",
        "PREFECT_LOGGING_TO_API_ENABLED": "false",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    environment.pop("COLUMNS", None)
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment,
    )  # fmt: skip
    os.close(theirs)
    written = bytearray()
    while True:
        try:
            written += os.read(ours, 65536)
        except OSError:  # the program has ended
            break
    os.close(ours)
    assert process.wait() == 0, written.decode()
    return written.decode()


def screen(written: str, columns: int = 80) -> list[str]:
    """Draw what a program has written; what runs over the edge goes on in the next line."""
    lines, row, column, position = [""], 0, 0, 0
    while position < len(written):
        code = _CODE.match(written, position)
        if code:
            position = code.end()
            if code[2] == "A":
                row = max(0, row - int(code[1] or 1))
            elif code[2] == "K":
                lines[row] = ""
            continue
        character = written[position]
        position += 1
        if character == "\r":
            column = 0
        elif character == "\n" or column == columns:
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        if character not in "\r\n":
            lines[row] = lines[row].ljust(column)[:column] + character + lines[row][column + 1 :]
            column += 1
    return "\n".join(line.rstrip() for line in lines).rstrip().splitlines()
