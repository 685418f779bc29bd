"""S3 with retries by time, and parallel transfers.

botocore and s3fs retry by count, so how long an outage they survive depends on its kind and on luck;
botocore's standard mode also stops retrying after some hundred parallel failures. Here every transient
failure is retried until `RETRY_FOR` has passed.
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
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError
from botocore.exceptions import ConnectionError as NoConnection
from botocore.parsers import ResponseParserError
from fsspec import AbstractFileSystem
from s3fs import S3FileSystem

from expandr_core.errors import DataError

log = logging.getLogger(__name__)
RETRY_FOR = 90.0  # seconds
READ_TIMEOUT = 30.0  # seconds without a response until a request is retried
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0  # seconds
_PART = 1 << 24  # bytes; equal files get equal ETags only with equal part sizes
_PARTS_AT_ONCE = 4  # per file; half a GiB for eight files
_MOST_PARTS = 10_000
_BUSY = {
    *("RequestTimeout", "RequestTimeoutException", "SlowDown", "Throttling", "TooManyRequests"),
    "NoSuchBucket",  # observed: Swift's response while its container servers are down
}


class S3(S3FileSystem):
    """s3fs that retries for `RETRY_FOR`; after that it raises an OSError, never "not there"."""

    retries = 1  # s3fs's retries, which cover time-outs only

    def __init__(self, **options: Any):
        """Open S3 as configured in the environment; fsspec reuses instances with equal options."""
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
        """Ask by HEAD; confirm "not there" by a listing, whose errors are explicit."""
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
        """Take paths literally: brackets and stars are not patterns."""
        paths = [path] if isinstance(path, str) else path
        return await super()._expand_path(paths, recursive, maxdepth, assume_literal=True)

    async def _cat_file(self, *arguments: Any, **named: Any) -> Any:
        named["max_concurrency"] = 1  # more would request the size first; these objects are small
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
            if isinstance(error, BotoCoreError) and not is_transient(error):
                raise DataError(
                    f"S3 cannot be asked ({error}); correct the AWS settings of the environment, such "
                    "as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile in AWS_PROFILE"
                ) from error
            if not is_transient(error):
                raise
            if time.monotonic() + pause > end:
                raise _gave_up(error) from error
            if pause == _FIRST_PAUSE:
                log.info("S3 failed (%s: %s); retrying", type(error).__name__, error)
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _gave_up(error: Exception) -> OSError:
    kind = type(error).__name__
    return OSError(errno.EIO, f"S3 has failed for {RETRY_FOR:.0f} s, last with {kind}: {error}")


def is_transient(error: BaseException) -> bool:
    """Tell whether the server or the network is at fault, not the request."""
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


def check_bucket(filesystem: AbstractFileSystem, url: str) -> None:
    """Check that the bucket of a URL exists.

    Raises:
        DataError: if it does not.
    """
    try:
        filesystem.info(url.removeprefix("s3://").split("/")[0])
    except OSError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ClientError) and cause.response["Error"]["Code"] == "NoSuchBucket":
                raise DataError(
                    f"{url}: no such bucket; create it, or correct the store's URL"
                ) from error
            cause = cause.__cause__
        raise


def write_if(
    filesystem: AbstractFileSystem, path: str, content: bytes, **condition: str
) -> str | None:
    """Write a small object under a condition; return its ETag, or None if the condition does not hold.

    Args:
        filesystem: an S3.
        path: of the object.
        content: of it.
        condition: `mode="create"` if it must not be there, `IfMatch=ETAG` if it must not have changed.
    """
    put: Any = filesystem.pipe_file
    try:
        return put(path, content, **condition)["ETag"]
    except OSError as error:
        if _precondition_failed(error):
            return None
        raise


def _precondition_failed(error: OSError) -> bool:
    """Tell whether a conditional write was refused by its condition."""
    answer = error.__cause__
    if not isinstance(answer, ClientError):
        return isinstance(error, FileExistsError | FileNotFoundError)
    status = answer.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status in (404, 409, 412)


def is_unknown(error: OSError) -> bool:
    """Tell whether the server does not support the request."""
    answer = error.__cause__
    if not isinstance(answer, ClientError):
        return False
    return answer.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (400, 405, 501)


def upload(filesystem: AbstractFileSystem, source: Path, target: str) -> str:
    """Upload a file, in parallel parts if it is large; return its ETag.

    The server verifies a checksum of every part.

    Raises:
        OSError: if not all bytes arrived.
    """
    size = source.stat().st_size
    part = max(_PART, math.ceil(size / _MOST_PARTS))
    put: Any = filesystem.put_file
    options = {"chunksize": part, "max_concurrency": _PARTS_AT_ONCE}
    try:
        put(str(source), target, **options)
    except FileNotFoundError:  # a response was lost, and the retry found the upload complete
        put(str(source), target, **options)
    info: dict[str, Any] = filesystem.info(target)
    if info["size"] != size:
        raise OSError(f"{target}: {info['size']} of {size} bytes arrived")
    return info["ETag"]


def download(filesystem: AbstractFileSystem, source: str, target: Path) -> None:
    """Download a file, in parallel parts if it is large.

    Raises:
        FileNotFoundError: if it is not there.
        OSError: if the download failed.
    """
    get: Any = filesystem.get_file
    get(source, str(target), chunksize=_PART, max_concurrency=_PARTS_AT_ONCE)
