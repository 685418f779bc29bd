"""Archives of datasets: downloaded by beir, verified here, and read without unpacking.

beir verifies nothing: it accepts a partial file as the whole archive, and a server's error page as data.
"""

import hashlib
import logging
import zipfile
from pathlib import Path, PurePosixPath

from expandr_core.errors import DataError
from expandr_core.store.filesystems import partial_file

log = logging.getLogger(__name__)


def fetch_archive(url: str, md5: str, folder: Path) -> Path:
    """Download a zip archive into a folder, unless a complete copy is already there.

    Args:
        url: of the archive.
        md5: its checksum.
        folder: receives it.

    Raises:
        OSError: if the download failed or was incomplete; a retry may help.
        DataError: if it is an archive with another checksum, or has paths outside itself.
    """
    from beir.util import download_url

    path = folder / "archive.zip"
    if not (path.exists() and _md5(path) == md5):
        log.info("downloading %s", url)
        with partial_file(path) as partial:
            download_url(url, str(partial))
            _require(partial, md5, url)
    log.info("%s has the MD5 %s", url, md5)
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            inner = PurePosixPath(name.replace("\\", "/"))
            if inner.is_absolute() or ".." in inner.parts:
                raise DataError(
                    f"{url}: the archive has a path outside itself, {name!r}; use another copy"
                )
    return path


def _require(path: Path, md5: str, url: str) -> None:
    """Check a download; anything but an archive counts as a server failure."""
    found = _md5(path)
    if found == md5:
        return
    size = path.stat().st_size
    message = f"{url}: {size} bytes with the MD5 {found} arrived, not the archive with {md5}"
    if zipfile.is_zipfile(path):
        raise DataError(
            f"{message}; it is a different archive, so name another copy of the dataset: NAME=LOCATION"
        )
    raise OSError(f"{message}; the server may have failed")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def inside(path: Path, folder: str) -> str:
    """Return the location of a folder in a zip archive, as fsspec writes it.

    >>> inside(Path("/data/archive.zip"), "scifact")
    'zip://scifact::/data/archive.zip'
    """
    return f"zip://{folder}::{path.absolute()}"
