"""Training in several processes: the same numbers as in one, and the same bytes after kills."""

import logging
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import rank_programs as programs
import retriever_world as world
import torch
from flat_options import flat
from safetensors.torch import load_file
from waiting import wait_until

from expandr_core.options.retriever import EncodingOptions
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.runner import make_spec, run_stage
from expandr_core.stages import train_retriever
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store, sha256_of
from expandr_core.training.distributed import launch
from expandr_core.training.retriever import RetrieverTask, train
from expandr_core.training.retriever_trainer import History

EXAMPLES = [
    world.example(thing, [other for other in world.THINGS if other != thing][: number % 4])
    for number, thing in enumerate(world.THINGS)
]
EXPANSIONS = [
    (f"q{i}{j}", sample, f"tech{(i, j)[sample]}" if i + j != 5 else "")
    for i, j in world.THINGS
    for sample in (0, 1)
]
SETTINGS: dict[str, Any] = {
    "learning_rate": 0.001,
    "epochs": 2,  # of two passes: 112 rows
    "batch_size": 32,
    "hard_negatives": 2,
    "expansions_per_query": 2,
    "encoding": EncodingOptions(max_tokens=32),
    "contrastive_temperature": 0.1,
    "precision": "float32",
}
CASES: dict[str, dict[str, Any]] = {
    "even": {},
    "a process without a row": {"batch_size": 37},  # 112 is three times 37 and one
    "shares of unequal size, little kept": {"batch_size": 33, "mini_batch_size": 4},
    "dev part": {"held_out_share": 0.3, "evaluation_steps": 2},
}


INTERRUPTED = {"epochs": 6, "batch_size": 16, "mini_batch_size": 8, "held_out_share": 0.3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The inputs as files, with a retriever without dropout."""
    folder = tmp_path_factory.mktemp("inputs")
    world.write_rows(folder / "retriever.parquet", EXAMPLES, world.EXAMPLES)
    rows = [dict(zip(world.EXPANSIONS.names, row, strict=True)) for row in EXPANSIONS]
    world.write_rows(folder / "expansions.parquet", rows, world.EXPANSIONS)
    world.save_bert(folder / "model", dropout=0.0)
    world.save_bert(folder / "model-with-dropout")
    return folder


def task(folder: Path, name: str, **options: Any) -> RetrieverTask:
    work = folder / name
    (work / "out").mkdir(parents=True)
    (work / "checkpoints").mkdir()
    return RetrieverTask(
        examples=folder / "retriever.parquet",
        mined=None,
        expansions=[folder],
        retriever=folder / "model",
        checkpoints=work / "checkpoints",
        checkpoint=None,
        out=work / "out",
        options=(asked := flat(train_retriever.OPTIONS, **(SETTINGS | options))).training,
        encoding=asked.encoding,
        fusion=asked.fusion,
        seed=0,
    )


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> dict[str, tuple[dict, History, Path]]:
    """Counts, history and model of each case, trained in two processes."""
    tasks = [task(folder, f"two, {name}", **options) for name, options in CASES.items()]
    uninterrupted = task(folder, "two, uninterrupted", **INTERRUPTED)
    tasks.append(replace(uninterrupted, retriever=folder / "model-with-dropout"))
    results = launch(programs.train_all, 2, "cpu", tasks)
    trained = zip([*CASES, "uninterrupted"], results, tasks, strict=True)
    return {name: (*result, task.out) for name, result, task in trained}


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one_does(folder, outcomes, name):
    alone = task(folder, f"one, {name}", **(CASES[name] | {"mini_batch_size": 1000}))
    counts, expected = train(alone, "cpu", no_progress)
    others, history, out = outcomes[name]
    assert others == counts
    assert history.losses == pytest.approx(expected.losses, abs=1e-5)
    assert history.dev == pytest.approx(expected.dev, abs=1e-5)
    assert history.best_step == expected.best_step
    weights = [load_file(each / "model.safetensors") for each in (alone.out, out)]
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=1e-5)
    start = load_file(folder / "model" / "model.safetensors")
    moved = max((start[name] - weights[0][name]).abs().max().item() for name in start)
    assert moved > 1e-3  # a hundred times what they may differ by


def test_kills_leave_no_process_and_do_not_change_the_bytes(folder, outcomes, tmp_path, caplog):
    """Kill -9 the stage, then one of two processes, then let the stage finish."""
    store = Store(str(tmp_path / "store"))
    inputs: dict[str, Artifact] = {
        "retriever": world.put(store, "import-model", folder / "model-with-dropout"),
        "examples": world.put_examples(store, "prepare-examples", EXAMPLES),
        "expansions": world.put_expansions(store, "expand-all", EXPANSIONS),
    }
    runtime = {"processes": 2, "checkpoint_steps": 1}
    options = flat(train_retriever.OPTIONS, **(SETTINGS | INTERRUPTED | runtime))
    spec = make_spec("train_retriever", options, inputs, device="cpu")
    checkpoints = store.scratch / "work" / spec.key / "checkpoints"
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    command = [
        sys.executable,
        "-m",
        "expandr_core.runtime.runner",
        str(tmp_path / "spec.json"),
        store.url,
    ]
    stage = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: newest(checkpoints) >= 2)
    ranks = programs.ranks_of(stage)
    assert len(ranks) == 2
    stage.kill()
    stage.wait()
    assert not psutil.wait_procs(ranks, timeout=300)[1]

    first = newest(checkpoints)

    def kill_second_rank() -> None:
        wait_until(lambda: newest(checkpoints) > first)
        programs.ranks_of(psutil.Process())[1].kill()

    killer = threading.Thread(target=kill_second_rank)
    killer.start()
    with pytest.raises(RuntimeError, match=r"process \d failed"):
        run_stage(spec, store, no_progress)
    killer.join()
    assert not programs.ranks_of(psutil.Process())

    caplog.clear()
    with caplog.at_level(logging.INFO, "expandr_core"):
        artifact = run_stage(spec, store, no_progress)
    going_on = re.search(r"going on from checkpoint-(\d+)", caplog.text)
    assert going_on and int(going_on[1]) > first
    counts, history, out = outcomes["uninterrupted"]
    assert artifact.counts["steps"] == len(history.losses)
    assert counts.items() <= artifact.counts.items()
    log = pq.read_table(store.local(artifact) / "training_log.parquet")
    assert log["loss"].to_numpy().tolist() == np.float32(history.losses).tolist()
    of_stage = ("expansion.json", "training_log.parquet")
    files = {name: digest for name, digest in artifact.files.items() if name not in of_stage}
    assert files == digests(out)


def newest(checkpoints: Path) -> int:
    """Return the step of the newest checkpoint; 0 if there is none."""
    return max((int(path.stem[11:]) for path in checkpoints.glob("checkpoint-*.pt")), default=0)


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}
