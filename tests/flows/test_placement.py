"""Stages on work pools: the same artifacts, whatever becomes of the processes that make them."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import pairs_world
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_loop
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import PREFECT_API_URL
from store_keys import full
from test_evaluate_suite import write_dataset
from tiny_models import save_llm, save_retriever
from waiting import wait_until

from deployments.apply import apply_deployment
from deployments.plan import Deployment
from deployments.pools import apply_pool
from expandr_core.errors import DataError
from expandr_core.evaluation.comparison import MeasuredDataset, System
from expandr_core.evaluation.metrics import METRICS
from expandr_core.options.evaluation import EvaluationOptions, SignificanceOptions
from expandr_core.options.generation import PromptOptions
from expandr_core.options.loop import JointLoopOptions
from expandr_core.runtime.runner import make_spec
from expandr_core.stages.compare import CompareOptions
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import MANIFEST, Store
from flows.evaluate_suite import SuiteSummary, evaluate_suite
from flows.model_pairs import MeasuredModels
from flows.run_record import RunRecord
from flows.single_stage import Inputs, single_stage
from flows.stage import stage
from tasks.pipeline import Pipeline
from tasks.placement import Placement

pytestmark = pytest.mark.usefixtures("prefect_server")
ROOT = Path(__file__).parents[2]
POOL = "gpu-infer"
INPUTS = Inputs(llm=full("tiny_llm-1"), queries=f"{full('prepare-1')}/queries.parquet")
SUITE = tiny_loop.OPTIONS.model_copy(
    update={"evaluate": EvaluationOptions(depth=100, greedy=False, report=False)}
)
HERE, PLACED = Placement(), Placement(generate=POOL, runs_at_once=2)


def start_worker(name: str, home: Path) -> subprocess.Popen:
    """Start a worker with a home and a scratch of its own."""
    home.mkdir(exist_ok=True)
    environment = os.environ | {
        "PREFECT_API_URL": PREFECT_API_URL.value(),
        "PREFECT_HOME": str(home),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "EXPANDR_SCRATCH": str(home / "scratch"),
    }
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL]
    with (home / "log").open("wb") as log:
        return subprocess.Popen(
            [*command, "--name", name, "--limit", "1"],
            env=environment, cwd=home, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def halt(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Suspend processes; return those that had not ended."""
    halted = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()
            halted.append(process)
    return halted


def kill(worker: subprocess.Popen) -> None:
    """Kill a worker with the run that it makes; nobody reports the run's end."""
    for process in [worker, *psutil.Process(worker.pid).children(recursive=True)]:
        process.kill()
    worker.wait()


@pytest.fixture(scope="module")
def workers(prefect_server, tmp_path_factory):
    """Deploy the flow `stage` and start two workers."""
    with get_client(sync_client=True) as client:
        apply_pool(client, POOL, "", "process", False)
        apply_deployment(client, Deployment(stage, POOL, POOL, "", {}), False)
    started = [start_worker(name, tmp_path_factory.mktemp(name)) for name in ("one", "two")]
    with get_client(sync_client=True) as client:

        def registered() -> bool:
            assert all(worker.poll() is None for worker in started)
            return len(client.read_workers_for_work_pool(POOL, offset=0, limit=9)) == 2

        wait_until(registered)
    yield started
    for worker in started:
        if worker.poll() is None:
            kill(worker)


def filled(folder: Path, llm: Path, queries: int) -> Store:
    """Make a store with a language model and queries."""
    store = Store(str(folder))
    model = shutil.copytree(llm, store.scratch / "llm")
    store.commit(full("tiny_llm-1"), model, [], {"counts": {}})
    rows = [
        {"query_id": f"q{n:03}", "query": f"why is thing {n} grey?", "positive_id": "p",
         "positive": "text"}
        for n in range(queries)
    ]  # fmt: skip
    table = store.scratch / "queries"
    table.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), table / "queries.parquet")
    store.commit(full("prepare-1"), table, [], {"counts": {}})
    return store


def options(samples: int) -> JointLoopOptions:
    sampling = tiny_loop.OPTIONS.expand.candidates.model_copy(update={"samples": samples})
    expanding = tiny_loop.OPTIONS.expand.model_copy(
        update={"candidates": sampling, "queries_per_shard": 8}
    )
    return tiny_loop.OPTIONS.model_copy(update={"expand": expanding})


def expanded(store: Store, placement: Placement, samples: int = 4) -> Artifact:
    [step] = single_stage("candidates", options(samples), INPUTS, placement, store.url)
    return step.artifact


def stage_runs(key: str) -> list[FlowRun]:
    """Read the runs of the flow `stage` for an artifact, or a store's URL, by helper and number."""
    ours = FlowFilter(name=FlowFilterName(any_=["stage"]))  # a server has other runs by the hundred
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_filter=ours, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=200
        )
    runs = [run for run in runs if key in (run.idempotency_key or "")]
    return sorted(runs, key=lambda run: run.idempotency_key or "")


def titles(runs: list[FlowRun]) -> set[str]:
    """Return their titles; of a run that a busy server lost or failed to show there is another."""
    return {run.name for run in runs}


def processes_of(workers: list[subprocess.Popen], runs: list[FlowRun]) -> list[psutil.Process]:
    """Find the processes of runs; a worker may still have one of an earlier run."""
    ids, found = {str(run.id) for run in runs}, []
    for worker in workers:
        for process in psutil.Process(worker.pid).children():
            with contextlib.suppress(psutil.Error):  # it has ended
                if process.environ().get("PREFECT__FLOW_RUN_ID") in ids:
                    found.append(process)
    return found


def test_shards_made_on_two_workers_are_those_made_here(workers, llm_folder, tmp_path):
    here = expanded(filled(tmp_path / "here", llm_folder, 40), HERE)
    store = filled(tmp_path / "placed", llm_folder, 40)
    placed = expanded(store, PLACED)
    assert placed == here
    runs = stage_runs(placed.key)
    assert titles(runs) == {"write candidates, run 1", "write candidates, run 2"}
    assert runs[0].parameters["about"]["stage"] == "expand"
    assert runs[0].parameters["about"]["inputs"]["llm"] == INPUTS.llm
    assert expanded(store, PLACED) == placed
    assert len(stage_runs(placed.key)) == len(runs)

    wait_until(lambda: all(run.state and run.state.is_final() for run in stage_runs(placed.key)))
    over = {run.id for run in runs}
    shutil.rmtree(store.root + f"/artifacts/{placed.key}")
    shutil.rmtree(store.root + f"/artifacts/{store.keys('expand_shard')[0]}")
    assert expanded(store, PLACED) == placed
    new = [run for run in stage_runs(placed.key) if run.id not in over]
    assert titles(new) == titles(runs)


def test_lazy_pairs_made_on_two_workers_are_those_made_here(workers, llm_folder, tmp_path):
    made, lazy = [], pairs_world.options(lazy=True, acceptance_value=-2)
    for name, placement in (("here", HERE), ("placed", PLACED)):
        store = pairs_world.filled(tmp_path / name, llm_folder)
        made.append(pairs_world.pairs_of(store.url, lazy, placement))
    here, placed = made
    assert placed == here
    assert placed[0].title == "write candidates, first 2 shards"
    assert all(len(titles(stage_runs(step.artifact.key))) == 2 for step in placed[:2])


def test_two_parents_share_a_run_and_a_killed_process_costs_its_unfinished_shards(
    workers, llm_folder, tmp_path
):
    store = filled(tmp_path / "store", llm_folder, 100)
    made: list[Artifact] = []
    parents = [
        threading.Thread(target=lambda: made.append(expanded(store, PLACED, 128))) for _ in range(2)
    ]
    for parent in parents:
        parent.start()
    wait_until(lambda: len(finished_shards(store)) >= 4)
    # so that none ends before one is killed
    halted = halt(child for worker in workers for child in psutil.Process(worker.pid).children())
    before = finished_shards(store)
    process, *_ = processes_of(workers, stage_runs(store.url))  # a slow worker may not have begun
    os.killpg(process.pid, signal.SIGKILL)
    for process in halted:
        with contextlib.suppress(psutil.NoSuchProcess):  # the killed one
            process.resume()
    for parent in parents:
        parent.join(300)
    assert len(made) == 2
    assert made[0] == made[1]
    after = finished_shards(store)
    assert set(after) == {part.key for part in store.shards(made[0])}
    assert {key: after[key] for key in before} == before

    def states() -> list[str | None]:
        return [run.state_name for run in stage_runs(made[0].key)]

    wait_until(lambda: "Crashed" in states())  # its worker may tell after the others' end
    assert "Completed" in states() and states().count("Crashed") == 1


def finished_shards(store: Store) -> dict[str, int]:
    paths = Path(store.root).glob(f"artifacts/expand_shard-*/{MANIFEST}")
    return {path.parent.name: path.stat().st_mtime_ns for path in paths}


def test_wrong_input_is_reported_and_not_tried_again(workers, llm_folder, tmp_path):
    store = filled(tmp_path / "store", llm_folder, 4)
    expanding = options(4).expand.model_copy(update={"prompt": PromptOptions(max_tokens=9_000)})
    too_long = options(4).model_copy(update={"expand": expanding})
    with pytest.raises(DataError, match="exceeds the model's context of 512 tokens") as error:
        single_stage("candidates", too_long, INPUTS, PLACED, store.url)
    runs = [run for run in stage_runs("expand-") if run.state_name == "BadInput"]
    assert [run.state.message for run in runs if run.state] == [str(error.value)]


def test_a_leaderboard_with_more_inputs_than_prefect_s_parameters_hold_runs_on_a_pool(
    workers, tmp_path
):
    store = Store(str(tmp_path / "store"))
    rows = {"query_id": ["q1", "q2"], "cluster": ["q1", "q2"]}
    rows |= {name: [0.1, 0.2] for name in METRICS}
    others = ("run.parquet", "metrics.json", "a_file_with_a_long_name.json")
    measured = put_file(store, "evaluate-1", "per_query.parquet", rows, *others)
    texts = {"query_id": ["q1", "q2"], "query": ["one", "two"]}
    queries = put_file(store, "prepare-2", "queries.parquet", texts).at("queries.parquet")
    datasets = [f"dataset-{number}" for number in range(15)]
    systems = [System(name=f"{n}", title=f"{n}", seeds=1 + 4 * (n % 3 == 2)) for n in range(30)]
    inputs = {f"queries/{name}": queries for name in datasets} | {
        f"measured/{name}/{system.name}/{seed}": measured
        for name in datasets
        for system in systems
        for seed in range(system.seeds)
    }
    options = CompareOptions(
        systems=tuple(systems), datasets=tuple(MeasuredDataset(name=name) for name in datasets),
        contrasts=(), significance=SignificanceOptions(),
    )  # fmt: skip
    spec = make_spec("compare", options, inputs)
    assert len(inputs) > 1000 and len(spec.model_dump_json()) > 512 * 1024

    @flow(name="leaderboard")
    def leaderboard() -> Artifact:
        placement = Placement(measure=POOL)
        return Pipeline(store.url, placement=placement).step(
            "compare", inputs, "compare", options=options
        )

    assert leaderboard().counts["systems"] == 30
    [run] = stage_runs(spec.key)
    assert run.name == "compare"
    assert run.parameters["about"]["inputs"]["..."] == "and 1045 more"


def with_pairs(folder: Path, llm: Path) -> tuple[Store, tuple[str, ...]]:
    """Make a store with two runs whose best models share a retriever; return the runs' names."""
    store, now = Store(str(folder)), datetime.now(UTC)
    retriever = save_retriever(store.scratch / "retriever")
    models = {
        "llm-1": shutil.copytree(llm, store.scratch / "llm-1"),
        "llm-2": save_llm(store.scratch / "llm-2", seed=1),
        "retriever-1": retriever,
    }
    made = {n: store.commit(full(n), path, [], {"counts": {}}) for n, path in models.items()}
    names = ("20260101T000000-one", "20260101T000000-two")
    for name, writer in zip(names, ("llm-1", "llm-2"), strict=True):
        best = {"llm": made[writer], "retriever": made["retriever-1"]}
        record = RunRecord(
            name=name, flow_run_id="", store=store.url, started=now, finished=now, steps=[],
            report=made[writer], options=SUITE, best_round=1, models=best,
        )  # fmt: skip
        store.write_record(name, record.model_dump(mode="json"))
    return store, names


def test_a_suite_of_two_pairs_on_two_workers_reports_what_one_here_does(
    workers, llm_folder, tmp_path
):
    datasets = [write_dataset(tmp_path / f"data-{number}", number) for number in range(3)]

    def suite(name: str, placement: Placement) -> SuiteSummary:
        store, runs = with_pairs(tmp_path / name, llm_folder)
        return evaluate_suite(
            tuple(map(str, datasets)), options=SUITE, models=MeasuredModels(runs=runs), seeds=2,
            placement=placement, store=store.url,
        )  # fmt: skip

    here, placed = suite("here", HERE), suite("placed", Placement(embed=POOL))
    assert placed.report == here.report
    assert len(placed.steps) == 3 * (4 + 2 * 6) + 1
    encoded = [step for step in placed.steps if step.id.stage == "encode"]
    runs = [stage_runs(step.artifact.key) for step in encoded]
    assert len(runs) == 3 and all("Completed" in [run.state_name for run in each] for each in runs)


def put_file(store: Store, key: str, name: str, columns: dict[str, list], *others: str) -> Artifact:
    folder = store.scratch / key
    folder.mkdir()
    for other in others:
        (folder / other).write_text(json.dumps(dict.fromkeys(METRICS, 0.15) | {"queries": 2}))
    pq.write_table(pa.table(columns), folder / name)
    counts = {metric: 0.15 for metric in METRICS}
    return store.commit(full(key), folder, [], {"counts": counts})


KILLED_PARENT = """
import sys
sys.path.insert(0, sys.argv[1])
from test_placement import Path, PLACED, Store, expanded
expanded(Store(sys.argv[2]), PLACED, 128)
"""


def test_a_parent_that_is_killed_finds_its_runs_again_when_it_is_tried_again(
    workers, llm_folder, tmp_path, caplog
):
    """Its runs are halted until the new parent has found them: they must not end before."""
    store = filled(tmp_path / "store", llm_folder, 104)  # no other test's artifact
    command = [sys.executable, "-c", KILLED_PARENT, str(Path(__file__).parent), store.url]
    environment = os.environ | {"PREFECT_API_URL": PREFECT_API_URL.value()}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    with subprocess.Popen(command, env=environment, start_new_session=True) as parent:
        try:
            deadline = time.monotonic() + 200
            while not (before := finished_shards(store)):
                assert parent.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            halted = halt(
                c for worker in workers for c in psutil.Process(worker.pid).children(True)
            )
        finally:
            os.killpg(parent.pid, signal.SIGKILL)
    made: list[Artifact] = []
    again = threading.Thread(target=lambda: made.append(expanded(store, PLACED, 128)))
    again.start()
    deadline = time.monotonic() + 300
    while sum("attached to run" in message for message in caplog.messages) < 2:
        if time.monotonic() > deadline:
            break  # the runs' number will tell
        time.sleep(0.05)
    for process in halted:
        process.resume()
    again.join(300)
    after = finished_shards(store)
    assert set(after) == {part.key for part in store.shards(made[0])}
    assert {key: after[key] for key in before} == before
    assert len([run for run in stage_runs(made[0].key) if run.name.endswith("run 1")]) == 1


def test_a_worker_that_comes_late_makes_what_killed_ones_have_left(workers, llm_folder, tmp_path):
    """Their runs stay Running: nobody has noticed their death.

    Each is halted once it runs, so that the other has time to begin.
    """
    store = filled(tmp_path / "store", llm_folder, 96)
    made: list[Artifact] = []
    placement = PLACED.model_copy(update={"runs_at_once": 3})
    parent = threading.Thread(target=lambda: made.append(expanded(store, placement, 128)))
    parent.start()

    def both_run() -> bool:
        running = [run for run in stage_runs(store.url) if run.state_name == "Running"]
        halt(processes_of(workers, running))
        return len(running) == 2

    wait_until(lambda: len(finished_shards(store)) >= 3)
    wait_until(both_run)
    before = finished_shards(store)
    for worker in workers:
        kill(worker)
    workers.append(start_worker("three", tmp_path / "three"))
    parent.join(300)
    after = finished_shards(store)
    assert set(after) == {part.key for part in store.shards(made[0])}
    assert {key: after[key] for key in before} == before
    states = {run.name: run.state_name for run in stage_runs(made[0].key)}
    assert states == {
        "write candidates, run 1": "Running",
        "write candidates, run 2": "Running",
        "write candidates, run 3": "Completed",
    }
