"""The whole loop under Prefect: what runs, what is found, and what becomes of damage and kills."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import tiny_loop
from finished_loop import finished, task_runs
from prefect import flow
from stage_processes import stage_processes
from typer.testing import CliRunner
from waiting import wait_until

from expandr_cli.main import app
from expandr_core.errors import DataError
from expandr_core.options.base import Options
from expandr_core.options.generation import PromptOptions
from expandr_core.options.preferences import PreferenceOptions
from expandr_core.options.training import DPOTrainingOptions
from expandr_core.stages import dpo, merge, pairs
from expandr_core.store.artifacts import Artifact
from expandr_core.store.run_records import StepId
from expandr_core.store.store import MANIFEST, Store
from flows.run_record import RunRecord, find_run
from tasks.pipeline import Pipeline

pytestmark = pytest.mark.usefixtures("prefect_server")
ROOT = Path(__file__).parents[2]


# What runs, and what is found


def test_the_loop_ends_with_a_summary_and_a_report(first):
    summary, store = first.record, Store(first.record.store)
    assert summary.options == tiny_loop.OPTIONS
    assert summary.best_round in (0, 1)
    assert set(summary.models) == {"llm", "retriever", "corpus"}
    assert summary.steps[-1].id == StepId("compare")
    assert summary.steps[-1].artifact == summary.report
    report = (store.local(summary.report) / "report.md").read_text()
    for title in ("BM25", "query only", "control", "joint round 1"):
        assert title in report
    [record] = store.records()
    assert RunRecord(**record) == summary
    assert store.notes() == []
    shown = CliRunner().invoke(app, ["runs", "--store", store.url], env={"COLUMNS": "200"})
    assert summary.name in shown.output and "nDCG@10 on test 0." in shown.output


def test_pairs_that_could_be_too_few_are_audited_before_anything_is_measured(first):
    stages = [step.id.stage for step in first.record.steps]
    audited = stages.index("audit_pairs")
    assert not {"encode", "evaluate", "evaluate_bm25", "dpo"} & set(stages[:audited])


def test_every_step_is_an_artifact_that_is_whole(first):
    store = Store(first.record.store)
    for step in first.record.steps:
        assert store.verify(step.artifact.key) == step.artifact, step.id
        assert store.manifest(step.artifact.key)["seed"] == first.record.options.seed == 1
    assert not list((store.scratch / "work").iterdir())


def test_nothing_is_made_twice_within_a_run(first):
    keys = [step.artifact.key for step in first.record.steps if step.id in first.made]
    assert len(set(keys)) == len(keys)


def test_a_second_run_finds_everything(first, store):
    again = finished(store)
    assert again.made == set()
    assert again.digests == first.digests
    assert again.record.flow_run_id != first.record.flow_run_id


def test_a_run_is_recorded_before_prefect_is_asked_to_show_it(first, store, monkeypatch):
    def away(markdown: str, key: str, description: str) -> None:
        if key == "joint-loop-report":
            raise ConnectionError("Prefect's server is away")

    monkeypatch.setattr("tasks.pipeline.create_markdown_artifact", away)
    with pytest.raises(ConnectionError):
        finished(store)
    record = Store(str(store)).records()[-1]
    assert record["report"] == first.record.report.model_dump()
    assert record["name"] != first.record.name


def test_a_changed_option_of_dpo_runs_what_follows_from_dpo_again(first, store):
    options = tiny_loop.OPTIONS.dpo.model_copy(update={"learning_rate": 0.1})
    changed = finished(store, tiny_loop.OPTIONS.model_copy(update={"dpo": options}))
    assert changed.made == {
        StepId("dpo", 1),
        StepId("merge", 1),
        StepId("expand", 1, "training"),
        StepId("mine", 1),
        StepId("train_retriever", 1),
        StepId("expand", 1, "test/sampled/0"),
        StepId("evaluate", 1, "test/aligned-1/0"),
        StepId("evaluate", 1, "test/control-aligned-1/0"),
        StepId("encode", 1, "test/round-1"),
        StepId("evaluate", 1, "test/round-1/0"),
        StepId("evaluate", 1, "test/round-1-query/0"),
        StepId("evaluate", 1, "test/round-1-alone/0"),
        StepId("audit", 1, "test/round-1"),
        StepId("expand", 1, "choose/dev/sampled/0"),
        StepId("evaluate", 1, "choose/dev/round-1/0"),
        StepId("compare", 1, "choose/dev/round-1"),
        StepId("compare"),
    }


def test_options_of_speed_alone_run_nothing_again(first, store):
    change = {"dpo": tiny_loop.OPTIONS.dpo.model_copy(update={"checkpoint_steps": 7})}
    assert finished(store, tiny_loop.OPTIONS.model_copy(update=change)).made == set()


def test_anchordr_goes_through_the_loop(first, store, tmp_path):
    """What the LLM writes before the first reward is found; all that a retriever is in is made."""
    from anchordr_world import make_anchordr, save_published, train_pieces
    from safetensors.torch import load_file

    model = make_anchordr(train_pieces(tmp_path / "pieces"))
    retriever = tiny_loop.OPTIONS.retriever.model_copy(
        update={"model": str(save_published(tmp_path / "anchordr", model))}
    )
    training = tiny_loop.OPTIONS.training.model_copy(
        update={"epochs": 1, "contrastive_temperature": 1.0}
    )
    update = {"retriever": retriever, "training": training}
    run = finished(store, tiny_loop.OPTIONS.model_copy(update=update))
    assert StepId("import_model", 0, "retriever") in run.made
    assert not {StepId("tiny_llm"), StepId("expand", 1, "candidates")} & run.made
    made = run.artifact("import_model", 0, "retriever"), run.artifact("train_retriever", 1)
    folders = [Store(str(store)).local(artifact) for artifact in made]
    start, trained = (load_file(folder / "model.safetensors") for folder in folders)
    assert start.keys() == trained.keys() == model.state_dict().keys()
    last = "decoder.block.1.layer.2.DenseReluDense.wo.weight"
    assert start[last].equal(model.state_dict()[last])
    assert not start[last].equal(trained[last])


# Damage


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_in_pairs(folder: Path) -> None:
    flip_a_byte(folder / "pairs.parquet")


def flip_in_a_part(folder: Path) -> None:
    part = json.loads((folder / MANIFEST).read_text())["parts"][0]["key"]
    flip_a_byte(folder.parent / part / "expansions.parquet")


@pytest.mark.parametrize(
    ("step", "damage"),
    [
        (StepId("pairs", 1), flip_in_pairs),
        (StepId("expand", 1, "candidates"), flip_in_a_part),
        (StepId("pairs", 1), lambda folder: flip_a_byte(folder / MANIFEST)),
        (StepId("mine", 1), shutil.rmtree),
        (
            StepId("evaluate", 1, "test/round-1/0"),
            lambda folder: (folder / "metrics.json").unlink(),
        ),
    ],
)
def test_a_damaged_artifact_alone_is_made_again_to_the_same_bytes(first, store, step, damage):
    damage(store / "artifacts" / first.artifact(*step[:3]).key)
    repaired = finished(store)
    assert repaired.made == {step}
    assert repaired.digests == first.digests


# Kills and errors


def run_as_a_program(home: Path, *command: str) -> subprocess.Popen:
    """Start Python with a Prefect of its own, in a process group of its own."""
    environment = {name: value for name, value in os.environ.items() if "PREFECT" not in name}
    environment |= {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    with (home.parent / "output").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment,
            start_new_session=True,
            stdout=output,
            stderr=output,
        )


def of_home(home: Path) -> list[psutil.Process]:
    """Find the processes that belong to a Prefect home."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("PREFECT_HOME") == str(home):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def home(tmp_path):
    home = tmp_path / "prefect" / "home"
    home.mkdir(parents=True)
    yield home
    for process in of_home(home):  # Prefect's server survives its flow being killed
        process.kill()


def manifests(store: Path) -> dict[str, int]:
    return {
        path.parent.name: path.stat().st_mtime_ns for path in store.glob(f"artifacts/*/{MANIFEST}")
    }


def test_a_killed_loop_goes_on_where_it_was_and_ends_in_the_same_bytes(first, store, home):
    key = first.artifact("train_retriever", 1).key
    shutil.rmtree(store / "artifacts" / key)
    before = manifests(store)
    program = run_as_a_program(home, tiny_loop.__file__, str(store))
    checkpoints = store / ".scratch" / "work" / key / "checkpoints"

    def has_a_checkpoint() -> bool:
        assert program.poll() is None
        return any(checkpoints.glob("checkpoint-*.pt"))

    wait_until(has_a_checkpoint)
    os.killpg(program.pid, signal.SIGKILL)
    assert program.wait() == -signal.SIGKILL
    stage_ends_with_its_flow(home)
    assert not (store / "artifacts" / key).exists()
    assert list(checkpoints.iterdir())

    assert run_as_a_program(home, "-m", "expandr_cli.main", "resume").wait(900) == 0
    summary = RunRecord(**Store(str(store)).records()[-1])
    assert {step.id: step.artifact.digest for step in summary.steps} == first.digests
    after = manifests(store)
    assert after.pop(key)
    assert after == before  # nothing that was finished has been written again
    assert "going on from checkpoint-" in (home.parent / "output").read_text()


def runs_a_stage(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):  # it has just ended
        return "expandr_core.runtime.runner" in process.cmdline()
    return False


def stage_ends_with_its_flow(home: Path) -> None:
    wait_until(lambda: not any(map(runs_a_stage, of_home(home))), "the end of the stage's process")


def in_a_flow(
    store: Path, stage: str, options: Options, inputs: dict[str, Artifact]
) -> tuple[Artifact | Exception, int]:
    """Run one stage in a flow; return the artifact or the error, and how often it was tried."""
    from prefect.runtime import flow_run

    ids = []

    @flow(name="one-stage")
    def one_stage() -> Artifact | Exception:
        ids.append(flow_run.id)
        try:
            pipeline = Pipeline(str(store), tiny_loop.OPTIONS)
            return pipeline.step(stage, inputs, stage, options=options)
        except Exception as error:
            return error

    result = one_stage()
    [run] = task_runs(ids[0], 1)
    return result, run.run_count


@pytest.mark.parametrize("stage", ["pairs", "dpo"])
def test_what_the_input_has_wrong_is_not_tried_again(first, store, stage):
    """`pairs` runs in this process and `dpo` in one of its own."""
    options: Options = pairs.OPTIONS(preferences=PreferenceOptions(acceptance_value=2))
    inputs = {"rewards": first.artifact("reward", 1)}
    if stage == "dpo":
        options = dpo.OPTIONS(
            training=DPOTrainingOptions(max_tokens=16), prompt=PromptOptions(max_tokens=400)
        )
        inputs = {"pairs": first.artifact("pairs", 1), "llm": first.artifact("tiny_llm")}
    error, tries = in_a_flow(store, stage, options, inputs)
    assert isinstance(error, DataError)
    assert tries == 1


def kill_the_first_stage() -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for child in stage_processes():
            return child.kill()
        time.sleep(0.01)


def test_a_stage_that_was_killed_is_tried_again(first, store):
    expected = first.artifact("merge", 1)
    shutil.rmtree(store / "artifacts" / expected.key)
    inputs = {
        "llm": first.artifact("tiny_llm"),
        "adapter": first.artifact("dpo", 1),
    }
    killer = threading.Thread(target=kill_the_first_stage)
    killer.start()
    made, tries = in_a_flow(store, "merge", merge.OPTIONS(), inputs)
    killer.join()
    assert made == expected
    assert tries == 2


def test_a_run_of_a_version_with_other_options_is_named_not_misread(first, store):
    record = Store(str(store)).records()[-1]
    record["options"]["retriever"]["normalize"] = True
    Store(str(store)).write_record(record["name"], record)
    with pytest.raises(DataError, match=r"version with other options \(options\.retriever\.normal"):
        find_run(Store(str(store)), "latest")
