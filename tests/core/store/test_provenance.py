"""What a manifest says of how its artifact came to be."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from expandr_core.store.artifacts import StageSpec
from expandr_core.store.commit import code_commit, commit_of
from expandr_core.store.provenance import Meter, provenance

ROOT = Path(__file__).parents[3]


def spec(**runtime: object) -> StageSpec:
    options = runtime.pop("options", {})
    return StageSpec(stage="expand", version=1, runtime={"options": options, **runtime})


def test_a_manifest_tells_memory_tokens_and_libraries():
    facts = provenance(spec(), {"tokens": 12}, Meter())
    assert facts["tokens"] == 12
    assert 10**7 < facts["peak_memory"]["bytes"] < 10**12
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "tokenizers", "bm25s", "pytrec-eval-terrier"} <= facts["libraries"].keys()
    assert facts["gpus"] == [] and "vllm_libraries" not in facts
    json.dumps(facts)


def test_memory_that_was_needed_before_is_only_a_limit():
    held = bytearray(200_000_000)
    held[::4096] = b"1" * len(held[::4096])
    meter = Meter()
    assert meter.used(spec())["peak_memory"]["exact"] is False
    meter.peak_before -= 1
    assert meter.used(spec())["peak_memory"]["exact"] is True
    assert meter.used(spec())["peak_memory"]["bytes"] >= len(held)


def test_the_libraries_of_the_interpreter_that_writes_are_named(tmp_path):
    other = tmp_path / "python"
    other.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    other.chmod(0o755)
    written = spec(options={"engine": "vllm"}, vllm_python=str(other))
    assert provenance(written, {}, Meter())["vllm_libraries"]["torch"]
    gone = spec(options={"engine": "vllm"}, vllm_python=str(tmp_path / "none"))
    assert provenance(gone, {}, Meter())["vllm_libraries"] == {}


def test_provenance_enters_no_key():
    options = {"engine": "vllm"}
    assert spec(options=options, device="cuda").key == spec(options=options).key


def test_the_commit_is_that_of_the_checkout_that_tracks_the_file(tmp_path):
    def git(*command: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *identity, *command], cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "tracked.py").write_text("1")
    (tmp_path / "installed.py").write_text("1")
    git("init")
    git("add", "tracked.py")
    git("commit", "-m", "one")
    commit = commit_of(tmp_path / "tracked.py")
    assert len(commit) == 12
    (tmp_path / "tracked.py").write_text("2")
    assert commit_of(tmp_path / "tracked.py") == f"{commit}-dirty"
    assert commit_of(tmp_path / "installed.py") == ""
    assert commit_of(tmp_path.parent / "elsewhere.py") == ""


@pytest.mark.skipif(not commit_of(ROOT / "setup.py"), reason="this is no git checkout")
def test_a_wheel_knows_its_commit(tmp_path):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    build = [sys.executable, "setup.py", "-q", "bdist_wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=clone, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    ask = "from expandr_core.store.commit import code_commit; print(code_commit())"
    installed = subprocess.run(
        [sys.executable, "-P", "-c", ask],
        env={"PYTHONPATH": str(tmp_path / "installed"), "PATH": "/usr/bin:/bin"},
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert installed.stdout.strip() == commit_of(clone / "setup.py")
    assert code_commit().startswith(installed.stdout.strip())
