"""Leases: of workers that share no disk, one makes an artifact while the others wait.

A lease is a small object in the store, created by a conditional write. Its holder rewrites it every few
seconds; a waiter takes it over once it has stayed unchanged for long enough *by the waiter's clock*. So
no clocks are compared, and a dead holder blocks no one. Store outages do not count against the holder.
A lease from the waiter's scratch folder is free at once: the waiter has locked the key there, so the
holder is dead.

Leases save work; they protect nothing. A holder presumed dead may go on, and both commit the same
artifact, intact either way. If a server does not honour conditional writes nobody waits for a lease:
workers that need the same artifact at the same time each make it. There, who does not want to wait
writes, lets a moment pass, and holds the lease if nobody has written since; that fails only if a request
takes longer than the moment.
"""

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from fsspec import AbstractFileSystem

from expandr_core.store.s3 import is_unknown, write_if

log = logging.getLogger(__name__)
REFRESH = 10.0  # seconds between signs of life of a holder
STALE = 60.0  # seconds without one until a lease is free
FIRST_POLL, LONGEST_POLL = 1.0, 5.0  # seconds
SETTLE = 2.0  # seconds that a write and a read take at most, where a server has no conditions


class Leases:
    """The leases that one process holds in a folder of the store."""

    def __init__(self, filesystem: AbstractFileSystem, folder: str, scratch: Path):
        """Prepare; nothing is written yet."""
        self._filesystem, self._folder = filesystem, folder
        self._holder = {
            "holder": secrets.token_hex(8),
            "host": socket.gethostname(),
            "process": os.getpid(),
            "scratch": str(scratch),
        }
        self._signs = 0
        self._held: dict[str, str] = {}  # ETag by path
        self._watched: dict[str, tuple[str, float, float]] = {}  # ETag, seconds silent, last look
        self._lock = threading.Lock()
        self._refresher: threading.Thread | None = None
        self._lacking: list[str] | None = None  # not asked yet

    def lacking(self) -> list[str]:
        """Try conditional writes on a probe object, once; return those the server does not honour.

        This cannot tell whether a server honours them under concurrent writes.
        """
        if self._lacking is None:
            path, lacking = f"{self._folder}/.probe-{self._holder['holder']}", []
            try:
                created = self._try(path, mode="create")
                if not created or self._try(path, mode="create") is not None:
                    lacking.append("If-None-Match: *")
                etag = created or self._write(path) or ""
                if not self._try(path, IfMatch=etag) or self._try(path, IfMatch=etag) is not None:
                    lacking.append("If-Match")
            finally:
                with contextlib.suppress(FileNotFoundError):
                    self._filesystem.rm_file(path)
            self._lacking = lacking
        return self._lacking

    def _try(self, path: str, **condition: str) -> str | None:
        """Write under a condition; return the ETag, None if refused, "" if not supported."""
        try:
            return self._write(path, **condition)
        except OSError as error:
            if not is_unknown(error):
                raise
            return ""

    @contextlib.contextmanager
    def hold(self, key: str, wait: bool = True) -> Iterator[bool]:
        """Hold the lease of a key and release it; yield whether it is held.

        Args:
            key: what the lease is for.
            wait: wait for another holder, but without leases for nobody; else yield False.
        """
        asked = self._lacking is not None
        if self.lacking():
            if not asked:
                log.warning("%s", no_leases(self.lacking()))
            if wait:
                yield False
                return
        path = f"{self._folder}/{key}"
        etag = (not self._lacking and self._write(path, mode="create")) or self._look(path, key)
        if wait and not etag:
            etag = self._wait(path, key)
        if not etag:
            yield False
            return
        with self._lock:
            self._held[path] = etag
            if self._refresher is None:
                self._refresher = threading.Thread(target=self._refresh, name="leases", daemon=True)
                self._refresher.start()
        try:
            yield True
        finally:
            self._release(path)

    def _wait(self, path: str, key: str) -> str:
        """Return the ETag of the lease once it is ours."""
        holder = self._read(path)[1]
        if holder:
            log.info("%s is being made by %s; waiting for it", key, _name(holder))
        poll = FIRST_POLL
        while not (etag := self._look(path, key)):
            time.sleep(poll)
            poll = min(1.5 * poll, LONGEST_POLL)
        return etag

    def _look(self, path: str, key: str) -> str | None:
        """Take the lease if nobody holds it or the holder gave no sign of life; return its ETag."""
        etag, holder = self._read(path)
        if not etag:
            taken = self._put(path, mode="create")
        elif self.watch(key, etag) >= STALE or self._is_dead(holder):
            taken = self._put(path, IfMatch=etag)
        else:
            return None
        if taken:
            self._watched.pop(path, None)
            if etag and holder != self._holder:
                log.warning("%s: %s gave no sign of life; taking over", key, _name(holder))
        return taken

    def watch(self, key: str, etag: str) -> float:
        """Note the ETag of a lease; return for how many seconds its holder has been silent.

        Between two looks these are `REFRESH` at most: if more time has passed, the store may have been
        down, for the holder too.
        """
        now, path = time.monotonic(), f"{self._folder}/{key}"
        seen, silent, before = self._watched.get(path, ("", 0.0, now))
        silent = silent + min(now - before, REFRESH) if etag == seen else 0.0
        self._watched[path] = etag, silent, now
        return silent

    def owns(self, key: str, etag: str) -> bool:
        """Tell whether a lease, seen with this ETag, is the one that this process holds."""
        path = f"{self._folder}/{key}"
        return self._held.get(path) == etag or self._read(path)[1] == self._holder

    def _put(self, path: str, **condition: str) -> str | None:
        """Write under a condition; a server without conditions is asked later who wrote last."""
        if not self._lacking:
            return self._write(path, **condition)
        self._write(path)
        time.sleep(SETTLE)
        etag, holder = self._read(path)
        return etag if holder == self._holder else None

    def _is_dead(self, holder: dict) -> bool:
        """Tell whether the holder worked in our scratch folder, whose lock we hold."""
        return all(holder.get(name) == self._holder[name] for name in ("host", "scratch"))

    def _read(self, path: str) -> tuple[str, dict]:
        """Return the ETag and the holder of a lease; ("", {}) if there is none."""
        try:
            etag = self._filesystem.info(path)["ETag"]
            content = json.loads(self._filesystem.cat_file(path))
        except FileNotFoundError:
            return "", {}
        return etag, {name: content.get(name) for name in self._holder}  # pyrefly: ignore[bad-return]

    def _write(self, path: str, **condition: str) -> str | None:
        """Write a sign of life; return its ETag, or None if the condition does not hold."""
        self._signs += 1
        content = json.dumps(self._holder | {"sign": self._signs}).encode()
        return write_if(self._filesystem, path, content, **condition)

    def _refresh(self) -> None:
        while True:
            time.sleep(REFRESH)
            with self._lock:
                if not self._held:
                    self._refresher = None
                    return
                held = list(self._held)
            for path in held:
                with self._lock:
                    if path in self._held:
                        self._sign(path)

    def _sign(self, path: str) -> None:
        try:
            etag = None
            if not self._lacking:
                etag = self._write(path, IfMatch=self._held[path])
            elif self._read(path)[1] == self._holder:
                etag = self._write(path)
            if not etag:  # the response was lost, or someone took it over
                etag, holder = self._read(path)
                if holder != self._holder:
                    del self._held[path]
                    log.warning("%s: taken over by %s; both continue", path, _name(holder))
                    return
            self._held[path] = etag
        except OSError as error:
            log.warning("%s: could not renew the lease (%s); the work continues", path, error)

    def _release(self, path: str) -> None:
        with self._lock:
            if not self._held.pop(path, None):
                return
            try:
                if self._read(path)[1] == self._holder:
                    self._filesystem.rm_file(path)
            except FileNotFoundError:
                pass
            except OSError as error:
                log.warning("%s: could not release the lease, so it will expire (%s)", path, error)


def no_leases(lacking: list[str]) -> str:
    """Explain the consequences of what a server does not honour."""
    return (
        f"the S3 server does not honour {' and '.join(lacking)} of a PUT, so there are no leases: "
        "workers that need the same artifact at the same time each make it. The result is the same; "
        "infra/README.md lists servers that do"
    )


def _name(holder: dict) -> str:
    return f"process {holder.get('process')} on {holder.get('host')}"
