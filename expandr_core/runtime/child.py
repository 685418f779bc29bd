"""Run a stage in a child process, which frees all memory when it exits and contains crashes."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import psutil

from expandr_core.errors import DataError
from expandr_core.runtime.device import run_device
from expandr_core.runtime.fork_server import Forked, fork
from expandr_core.runtime.job import Progress
from expandr_core.runtime.runner import BAD_INPUT, module_of
from expandr_core.store.artifacts import Artifact, StageSpec
from expandr_core.store.store import Store


def needs_child(spec: StageSpec) -> bool:
    """Tell whether a stage runs in a child process."""
    isolation = module_of(spec.stage).ISOLATION
    return isolation == "always" or (isolation == "on-gpu" and not is_on_cpu(spec))


def is_on_cpu(spec: StageSpec) -> bool:
    """Tell whether a stage runs without a GPU."""
    return run_device(spec.runtime.get("device", "auto")) == "cpu"


def run_in_child(
    spec: StageSpec,
    store: Store,
    progress: Progress,
    python: str = sys.executable,
    environment: dict[str, str] | None = None,
) -> Artifact:
    """Make the artifact in a child process, which ends with this call, as do its descendants.

    Args:
        spec: of the artifact.
        store: where it goes.
        progress: is told how far the stage is.
        python: interpreter of the child.
        environment: of this process, if later children may be forks of one that has imported what they
            need; see `fork_server`. Stages on a GPU are no forks.

    Raises:
        DataError: if the input is at fault.
        RuntimeError: if the child failed or was killed, with its last lines of output.
    """
    with tempfile.TemporaryDirectory(prefix="expandr-") as folder:
        path = Path(folder, "spec.json")
        path.write_text(spec.model_dump_json())
        errors = Path(folder, "stderr")
        with errors.open("wb") as stderr:
            arguments = [str(path), store.url, str(store.scratch)]
            arguments += [str(store.cache_bytes)] if store.cache_bytes is not None else []
            child = None
            if environment and is_on_cpu(spec):
                child = fork(arguments, stderr, environment)
            child = child or subprocess.Popen(
                [python, "-m", "expandr_core.runtime.runner", *arguments],
                stdin=subprocess.DEVNULL,  # prompts would go unseen
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )
        try:
            assert child.stdout is not None
            result = _follow(child.stdout, progress)
            status = child.wait()
        finally:
            terminate_tree(child)
        if isinstance(result, Artifact):
            return result
        if status == BAD_INPUT:
            raise DataError(result)
        last = errors.read_text(errors="replace").strip()[-3000:]
        how = (
            f"was killed by {signal.Signals(-status).name}"
            if status < 0
            else f"ended with {status}"
        )
        raise RuntimeError(f"stage {spec.stage} ({spec.key}) {how}\n{result or ''}\n{last}".strip())


def _follow(lines: Iterable[str], progress: Progress) -> Artifact | str | None:
    """Forward a child's events; return its artifact or its error message, which come last, if any."""
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue  # a library printed something
        match event:
            case {"log": message, "level": level, "logger": name}:
                logging.getLogger(name).log(level, "%s", message)
            case {"progress": [done, total, unit]}:
                progress(done, total, unit)
            case {"artifact": artifact}:
                return Artifact(**artifact)
            case {"error": message}:
                return message
    return None


def terminate_tree(child: subprocess.Popen | Forked, patience: float = 5) -> None:
    """End the child and all descendants, even in other sessions, such as torchrun's ranks.

    Args:
        child: leader of its process group.
        patience: seconds between SIGTERM and SIGKILL.
    """
    tree: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(child.pid)
        tree = [process, *process.children(recursive=True)]
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                end(process)
        _, tree = psutil.wait_procs(tree, patience)
    with contextlib.suppress(ProcessLookupError):  # orphans
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
