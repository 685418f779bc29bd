"""S3, asked again for a while before a failure is an error, and files sent to it in parallel.

botocore and s3fs retry by count: how long an outage they outlast depends on its kind and on chance.
botocore's standard mode also stops retrying once some hundred requests have failed side by side.
Here every request is repeated until `RETRY_FOR` has passed, whatever ails the server.
"""

import asyncio
import errno
import logging
import math
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError
from botocore.exceptions import ConnectionError as NoConnection
from botocore.parsers import ResponseParserError
from fsspec import AbstractFileSystem
from s3fs import S3FileSystem

log = logging.getLogger(__name__)
RETRY_FOR = 90.0  # seconds
READ_TIMEOUT = 30.0  # seconds without an answer, after which a request is repeated
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0  # seconds
_PART = 1 << 24  # bytes; equal bytes get equal ETags only if they are cut alike
_PARTS_AT_ONCE = 4  # of one file; with eight files that is half a GiB
_MOST_PARTS = 10_000
_BUSY = {
    *("RequestTimeout", "RequestTimeoutException", "SlowDown", "Throttling", "TooManyRequests"),
    "NoSuchBucket",  # what Swift answers while its container servers are away; seen, not guessed
}


class S3(S3FileSystem):
    """s3fs with `RETRY_FOR`; what remains an error after that is an OSError, never "not there"."""

    retries = 1  # s3fs's own, which know time-outs only

    def __init__(self, **options: Any):
        """Open S3 as the environment says; fsspec keeps one instance for all who ask alike."""
        config = {
            "connect_timeout": 10,
            "read_timeout": READ_TIMEOUT,
            "max_pool_connections": 64,
            "retries": {"total_max_attempts": 1},
        }
        super().__init__(use_listings_cache=False, config_kwargs=config, **options)

    async def _call_s3(self, *arguments: Any, **named: Any) -> Any:
        return await _patiently(super()._call_s3, *arguments, **named)

    async def _info(self, path: str, *arguments: Any, **named: Any) -> Any:
        """Ask by HEAD, and before "not there" is believed by a listing, which names its error."""
        try:
            return await super()._info(path, *arguments, **named)
        except FileNotFoundError:
            bucket, key, _ = self.split_path(path)
            found = await self._call_s3("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1)
            if not key or any(each["Key"] == key for each in found.get("Contents", [])):
                return await super()._info(path, *arguments, **named)
            raise

    async def _expand_path(
        self,
        path: str | list[str],
        recursive: bool = False,
        maxdepth: int | None = None,
        assume_literal: bool = True,
    ) -> list[str]:
        """List what is at a path, as it is: brackets and stars in names are no pattern here."""
        paths = [path] if isinstance(path, str) else path
        return await super()._expand_path(paths, recursive, maxdepth, assume_literal=True)

    async def _cat_file(self, *arguments: Any, **named: Any) -> Any:
        named["max_concurrency"] = 1  # more would ask for the size first, and here all is small
        return await _patiently(super()._cat_file, *arguments, **named)

    async def _get_file(self, *arguments: Any, **named: Any) -> Any:
        return await _patiently(super()._get_file, *arguments, **named)


async def _patiently(request: Callable[..., Awaitable[Any]], *arguments: Any, **named: Any) -> Any:
    end = time.monotonic() + RETRY_FOR
    pause = _FIRST_PAUSE
    while True:
        try:
            return await request(*arguments, **named)
        except Exception as error:
            if not is_transient(error):
                raise
            if time.monotonic() + pause > end:
                raise _gave_up(error) from error
            if pause == _FIRST_PAUSE:
                log.info("S3 failed (%s: %s); asking again", type(error).__name__, error)
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _gave_up(error: Exception) -> OSError:
    kind = type(error).__name__
    return OSError(
        errno.EIO, f"S3 has failed for {RETRY_FOR:.0f} s, the last time with {kind}: {error}"
    )


def is_transient(error: BaseException) -> bool:
    """Tell whether the server or the network is at fault, and not what was asked for."""
    answer = error if isinstance(error, ClientError) else error.__cause__
    if isinstance(answer, ClientError):
        status = answer.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return (
            status == 429
            or (status >= 500 and status != 501)
            or answer.response["Error"].get("Code") in _BUSY
        )
    return isinstance(
        error,
        NoConnection
        | HTTPClientError
        | IncompleteReadError
        | ResponseParserError
        | aiohttp.ClientError
        | TimeoutError
        | ConnectionError,
    )


def is_missing_bucket(error: BaseException | None) -> bool:
    """Tell whether an error comes from a bucket that does not exist."""
    while error is not None:
        if isinstance(error, ClientError) and error.response["Error"].get("Code") == "NoSuchBucket":
            return True
        error = error.__cause__
    return False


def precondition_failed(error: OSError) -> bool:
    """Tell whether a conditional write was refused because the object is not as expected."""
    answer = error.__cause__
    if not isinstance(answer, ClientError):
        return isinstance(error, FileExistsError | FileNotFoundError)
    status = answer.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status in (404, 409, 412)


def is_unknown(error: OSError) -> bool:
    """Tell whether the server does not know what was asked for."""
    answer = error.__cause__
    if not isinstance(answer, ClientError):
        return False
    return answer.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (400, 405, 501)


def upload(filesystem: AbstractFileSystem, source: Path, target: str) -> str:
    """Send a file, a large one in parts side by side; return its ETag.

    Every part carries a checksum that the server compares.

    Raises:
        OSError: if it could not be sent whole.
    """
    size = source.stat().st_size
    part = max(_PART, math.ceil(size / _MOST_PARTS))
    put: Any = filesystem.put_file
    options = {"chunksize": part, "max_concurrency": _PARTS_AT_ONCE}
    try:
        put(str(source), target, **options)
    except FileNotFoundError:  # an answer was lost: when asked again, the upload was complete
        put(str(source), target, **options)
    info = filesystem.info(target)
    if info["size"] != size:
        raise OSError(f"{target}: {info['size']} of {size} bytes arrived")
    return info["ETag"]


def download(filesystem: AbstractFileSystem, source: str, target: Path) -> None:
    """Fetch a file, a large one in parts side by side.

    Raises:
        FileNotFoundError: if it is not there.
        OSError: if it could not be fetched whole.
    """
    get: Any = filesystem.get_file
    get(source, str(target), chunksize=_PART, max_concurrency=_PARTS_AT_ONCE)
