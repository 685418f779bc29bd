"""A store as version 0.1.0 wrote it at commit a5fb1e5: one run of the preset tiny with seed 1.

Made by `python tests/flows/tiny_loop.py STORE`; weights, vectors and texts.parquet are left out.
"""

import tarfile
from pathlib import Path

ARCHIVE = Path(__file__).parent / "recorded" / "store-a5fb1e5.tar.xz"
RUN = "20261128T203347-smart-frog"


def unpacked(folder: Path) -> Path:
    """Unpack the store into a folder."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder
