"""Archives of datasets: downloaded by beir, verified by us, and read without being unpacked.

beir itself verifies nothing: it takes a file that is there for the whole archive, and an error page of
the server for its beginning.
"""

import hashlib
import logging
import zipfile
from pathlib import Path, PurePosixPath

from expandr_core.errors import DataError
from expandr_core.store.filesystems import partial_file

log = logging.getLogger(__name__)


def fetch_archive(url: str, md5: str, folder: Path) -> Path:
    """Download a zip archive into a folder, unless it is there whole from before a kill.

    Args:
        url: where it is.
        md5: what it must have.
        folder: where to put it.

    Raises:
        OSError: if it could not be fetched whole; asking again may help.
        DataError: if it is an archive, but not the one with this checksum, or not a safe one.
    """
    path = folder / "archive.zip"
    if not (path.exists() and _md5(path) == md5):
        log.info("downloading %s", url)
        with partial_file(path) as partial:
            _download(url, partial)
            _require(partial, md5, url)
    log.info("%s has the MD5 %s", url, md5)
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            inner = PurePosixPath(name.replace("\\", "/"))
            if inner.is_absolute() or ".." in inner.parts:
                raise DataError(
                    f"{url}: the archive has a file outside itself, {name!r}; use another"
                )
    return path


def _download(url: str, path: Path) -> None:
    from beir.util import download_url

    download_url(url, str(path))


def _require(path: Path, md5: str, url: str) -> None:
    """Check a download; what is no archive at all is taken for an outage."""
    found = _md5(path)
    if found == md5:
        return
    size = path.stat().st_size
    message = f"{url}: {size} bytes with the MD5 {found} arrived, not the archive with {md5}"
    if zipfile.is_zipfile(path):
        raise DataError(
            f"{message}; it is another one, so get the dataset elsewhere: NAME=LOCATION"
        )
    raise OSError(f"{message}; the server may have failed meanwhile")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def inside(path: Path, folder: str) -> str:
    """Return the location of a folder in a zip archive, as fsspec writes it.

    >>> inside(Path("/tmp/archive.zip"), "scifact")
    'zip://scifact::/tmp/archive.zip'
    """
    return f"zip://{folder}::{path.absolute()}"
