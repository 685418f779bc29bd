"""Training the retriever: what it learns, what its rows are, and that a kill changes nothing."""

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import retriever_world as world
from flat_options import flat
from stage_processes import stage_processes

from expandr_core.encoders.fusion import Fusion
from expandr_core.encoders.load import load_retriever
from expandr_core.errors import DataError
from expandr_core.options.retriever import EncodingOptions
from expandr_core.runtime.child import run_in_child
from expandr_core.runtime.job import Job
from expandr_core.runtime.runner import make_spec, run_stage
from expandr_core.stages import train_retriever
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store, sha256_of
from expandr_core.training.checkpoints import newest_checkpoint
from expandr_core.training.dev_metric import dev_set, measure
from expandr_core.training.grad_cache import GradCache
from expandr_core.training.rows import TrainingRows

EXAMPLES = [
    world.example(thing, [other for other in world.TRAINED if other != thing][:4])
    for thing in world.TRAINED
]
EXPANSIONS = [
    (f"q{i}{j}", sample, f"tech{(i, j)[sample]}") for i, j in world.TRAINED for sample in (0, 1)
]
DOT = EncodingOptions(similarity="dot", max_tokens=32)
SETTINGS = {
    "learning_rate": 0.03,
    "epochs": 12,
    "batch_size": 8,
    "warmup_share": 0.1,
    "hard_negatives": 2,
    "expansions_per_query": 1,
    "encoding": EncodingOptions(max_tokens=32),
    "contrastive_temperature": 0.05,
}


def no_progress(done: int, total: int, unit: str) -> None:
    """Report to nobody."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


Inputs = dict[str, Artifact]


def make_inputs(
    store: Store, save: Callable[[Path], Path] = world.save_static, expanded: bool = True
) -> Inputs:
    inputs = {
        "retriever": world.put(store, "import-model", save(store.scratch / "model")),
        "examples": world.put_examples(store, "prepare-examples", EXAMPLES),
    }
    if expanded:
        inputs["expansions"] = world.put_expansions(store, "expand-all", EXPANSIONS)
    return inputs


def trained(store: Store, inputs: Inputs, seed: int = 0, **options: Any) -> Artifact:
    settings = flat(train_retriever.OPTIONS, **(SETTINGS | options))
    spec = make_spec("train_retriever", settings, inputs, seed=seed, device="cpu")
    return run_stage(spec, store, no_progress)


def job_of(store: Store, inputs: Inputs, folder: Path, **options: Any) -> Job:
    settings = flat(train_retriever.OPTIONS, **(SETTINGS | options))
    spec = make_spec("train_retriever", settings, inputs, device="cpu")
    paths = {role: store.local(artifact) for role, artifact in inputs.items()}
    (folder / "out").mkdir(parents=True)
    checkpoints = folder.parent / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    return Job(spec, settings, paths, folder / "out", checkpoints, store, no_progress)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}


# What it learns


@pytest.mark.parametrize("save", [world.save_static, world.save_bert])
def test_training_with_expansions_finds_held_out_things_better(store, save):
    inputs = make_inputs(store, save)
    rate = 0.03 if save is world.save_static else 0.005
    after = store.local(trained(store, inputs, learning_rate=rate))
    before = store.local(inputs["retriever"])
    ranks = [
        world.mean_reciprocal_rank(folder, world.HELD_OUT, expanded=True)
        for folder in (before, after)
    ]
    assert ranks[0] < 0.5
    assert ranks[1] > ranks[0] + 0.3


def test_the_control_without_expansions_takes_as_many_steps(store):
    inputs = make_inputs(store)
    control = {role: inputs[role] for role in ("retriever", "examples")}
    options = {"epochs": 2, "expansions_per_query": 2}
    counts = [trained(store, each, **options).counts for each in (inputs, control)]
    assert counts[0]["steps"] == counts[1]["steps"] == np.ceil(len(EXAMPLES) * 4 / 8)


@pytest.mark.parametrize("option", [{"encoding": DOT}, {"contrastive_temperature": 0.5}])
def test_normalisation_and_temperature_change_the_model(store, option):
    inputs = make_inputs(store)
    usual = trained(store, inputs, epochs=1)
    assert (
        trained(store, inputs, epochs=1, **option).files["model.safetensors"]
        != (usual.files["model.safetensors"])
    )


def test_fewer_rows_than_a_batch_and_no_hard_negatives_can_be_trained_on(store, caplog):
    inputs = make_inputs(store, expanded=False)
    few = [row | {"negative_ids": [], "negatives": []} for row in EXAMPLES[:3]]
    inputs["examples"] = world.put_examples(store, "prepare-few", few)
    with caplog.at_level(logging.WARNING, "expandr_core"):
        artifact = trained(store, inputs, epochs=2, batch_size=64)
    assert "no example has a hard negative" in caplog.text
    assert artifact.counts["hard negative slots left empty"] == 3 * 2 * 2
    assert artifact.counts["steps"] == 1


def test_a_loss_that_is_not_a_number_stops_the_stage(store):
    with pytest.raises(DataError, match=r"diverged: .*lower training.learning_rate"):
        trained(store, make_inputs(store), encoding=DOT, learning_rate=1e30)


def test_the_best_step_on_the_dev_part_is_kept(store):
    """With a learning rate that soon ruins the model, the best step is not the last."""
    inputs = make_inputs(store)
    options = {"held_out_share": 0.4, "evaluation_steps": 2, "learning_rate": 5.0}
    artifact = trained(store, inputs, **options)
    log = pq.read_table(store.local(artifact) / "training_log.parquet").to_pandas()
    measured = log.dropna(subset="dev_ndcg_at_10")
    assert measured["step"].tolist() == [*range(2, len(log), 2), len(log)]
    best = measured["dev_ndcg_at_10"].idxmax()
    assert artifact.counts["best step"] == log["step"][best] < len(log)
    assert artifact.counts["dev nDCG@10/best step"] == round(log["dev_ndcg_at_10"][best], 4)
    saved = load_retriever(store.local(artifact), "cpu", EncodingOptions(max_tokens=32))
    dev = dev_set(
        TrainingRows(
            store.local(inputs["examples"]),
            mined=None,
            expansions=[store.local(part) for part in store.shards(inputs["expansions"])],
            options=flat(train_retriever.OPTIONS, **(SETTINGS | options)).training,
            seed=0,
        )
    )
    found = measure(GradCache(saved, "float32", 256), dev, Fusion(True, 0.5))
    assert found == pytest.approx(log["dev_ndcg_at_10"][best], abs=1e-6)


def test_bfloat16_trains_nearly_as_float32_and_is_another_artifact(store):
    inputs = make_inputs(store, world.save_bert)
    options = {"learning_rate": 0.005, "epochs": 4}
    exact, coarse = (
        trained(store, inputs, precision=precision, **options)
        for precision in ("float32", "bfloat16")
    )
    assert exact.key != coarse.key
    name = "loss/last tenth of the steps"
    assert coarse.counts[name] == pytest.approx(exact.counts[name], rel=0.1)
    assert coarse.files["model.safetensors"] != exact.files["model.safetensors"]


def test_batches_come_from_one_source_if_asked(store):
    mixed = [row | {"source": "ab"[place % 2]} for place, row in enumerate(EXAMPLES)]
    inputs = make_inputs(store)
    inputs["examples"] = world.put_examples(store, "prepare-sources", mixed)
    keys = {
        trained(store, inputs, epochs=1, batches=how).files["model.safetensors"]
        for how in ("mixed", "by_source")
    }
    assert len(keys) == 2


def test_a_query_without_its_expansion_is_named(store):
    inputs = make_inputs(store)
    inputs["expansions"] = world.put_expansions(store, "expand-less", EXPANSIONS[2:])
    with pytest.raises(DataError, match=f"query '{EXPANSIONS[0][0]}' has no expansion numbered 0"):
        trained(store, inputs)


# The same bytes, whatever happens


def test_equal_trainings_in_two_stores_give_equal_bytes_and_another_seed_others(tmp_path):
    stores = [Store(str(tmp_path / name)) for name in ("one", "two")]
    artifacts = [trained(store, make_inputs(store), epochs=2) for store in stores]
    assert artifacts[0].digest == artifacts[1].digest
    assert "README.md" not in artifacts[0].files
    other = trained(stores[0], make_inputs(stores[0]), epochs=2, seed=1)
    assert other.files["model.safetensors"] != artifacts[0].files["model.safetensors"]


def test_checkpoint_steps_do_not_change_the_bytes(tmp_path):
    stores = [Store(str(tmp_path / name)) for name in ("one", "two")]
    artifacts = [
        trained(store, make_inputs(store, world.save_bert), epochs=2, checkpoint_steps=steps)
        for store, steps in zip(stores, (1, 200), strict=True)
    ]
    assert artifacts[0].key == artifacts[1].key
    assert artifacts[0].digest == artifacts[1].digest


def test_training_goes_on_from_the_last_whole_checkpoint_to_the_same_bytes(store, tmp_path, caplog):
    inputs = make_inputs(store, world.save_bert)
    # every batch has more texts than activations are kept of
    options = {"checkpoint_steps": 10, "mini_batch_size": 8}
    whole = job_of(store, inputs, tmp_path / "jobs" / "whole", **options)
    train_retriever.run(whole)
    expected = digests(whole.out)
    assert whole.counts["steps"] == 32
    names = {path.name for path in whole.checkpoints.iterdir()}
    assert names == {"checkpoint-30.pt", "checkpoint-32.pt"}

    finished = job_of(store, inputs, tmp_path / "jobs" / "finished", **options)
    train_retriever.run(finished)  # killed after the last step, before the commit
    assert digests(finished.out) == expected

    last = whole.checkpoints / "checkpoint-32.pt"
    os.truncate(last, last.stat().st_size - 1)
    damaged = job_of(store, inputs, tmp_path / "jobs" / "damaged", **options)
    with caplog.at_level(logging.INFO, "expandr_core"):
        train_retriever.run(damaged)
    assert "going on from checkpoint-30" in caplog.text
    assert digests(damaged.out) == expected
    assert damaged.counts == whole.counts

    for path in whole.checkpoints.iterdir():
        path.write_bytes(b"")
    assert newest_checkpoint(whole.checkpoints) is None  # so it starts from the beginning
    assert not list(whole.checkpoints.iterdir())


def kill_at_first_checkpoint(checkpoints: Path) -> None:
    deadline = time.monotonic() + 400
    while not list(checkpoints.glob("checkpoint-*.pt")):
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.01)
    for child in stage_processes():
        child.kill()


def test_a_killed_training_goes_on_to_the_same_bytes(tmp_path, caplog):
    """Kill -9 the real child process as soon as it has a checkpoint, then run the stage again."""
    stores = [Store(str(tmp_path / name)) for name in ("killed", "whole")]
    options = flat(train_retriever.OPTIONS, **(SETTINGS | {"epochs": 20, "checkpoint_steps": 10}))
    specs = [
        make_spec("train_retriever", options, make_inputs(store, world.save_bert), device="cpu")
        for store in stores
    ]
    work = stores[0].scratch / "work" / specs[0].key
    killer = threading.Thread(target=kill_at_first_checkpoint, args=(work / "checkpoints",))
    killer.start()
    with pytest.raises(RuntimeError, match="was killed by SIGKILL"):
        run_in_child(specs[0], stores[0], no_progress)
    killer.join()
    with caplog.at_level(logging.INFO, "expandr_core"):
        resumed = run_stage(specs[0], stores[0], no_progress)
    assert "going on from checkpoint-" in caplog.text
    whole = run_stage(specs[1], stores[1], no_progress)
    assert resumed.files == whole.files
    log = pq.read_table(stores[0].local(resumed) / "training_log.parquet")
    assert log["step"].to_pylist() == list(range(1, len(log) + 1))
