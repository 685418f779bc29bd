"""A pipeline: ids of steps, views that share them, and branches that overlap or stop together."""

import copy
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from prefect import flow

from expandr_core.errors import DataError
from expandr_core.options.data import DemoWorldOptions
from expandr_core.store.artifacts import Artifact, StageSpec
from expandr_core.store.run_records import Step, StepId
from tasks.branches import branches, stop_if_asked, turn_in_this_process
from tasks.pipeline import Pipeline
from tasks.placement import Placement

ON_A_POOL = Placement(train="gpu-train")


@dataclass(frozen=True)
class Noting(Pipeline):
    """Makes nothing: it only specifies."""

    titles: list[str] = field(default_factory=list)
    before: Callable[[], Any] = lambda: None

    def make(self, step_id: StepId, title: str, spec: StageSpec) -> Artifact:
        self.before()
        self.titles.append(title)
        return Artifact(key=spec.key, digest=spec.key)


def world(pipeline: Pipeline, name: str = "") -> Artifact:
    options = DemoWorldOptions()
    return pipeline.step("demo_world", {}, "make the world", options=options, name=name)


def ids(pipeline: Pipeline) -> list[StepId]:
    return [step.id for step in pipeline.steps]


def test_what_a_view_makes_is_in_the_run():
    pipeline = Noting("store")
    world(pipeline.round(2))
    world(pipeline.changed(seed=7), "seed 7")
    world(pipeline.first_shards(3), "a few")
    assert ids(pipeline) == [
        StepId("demo_world", 2),
        StepId("demo_world", 0, "seed 7"),
        StepId("demo_world", 0, "a few", 3),
    ]
    assert pipeline.steps.artifact("demo_world", 2) != pipeline.steps.artifact(
        "demo_world", 0, "seed 7"
    )
    assert pipeline.titles == [
        "make the world, round 2",
        "make the world",
        "make the world, first 3 shards",
    ]


def test_a_copy_that_would_lose_steps_is_refused():
    with pytest.raises(TypeError):
        copy.deepcopy(Noting("store"))


def test_two_steps_of_a_run_never_share_an_id():
    pipeline = Noting("store")
    world(pipeline)
    world(pipeline.round(1))
    with pytest.raises(ValueError, match="two steps with the id StepId"):
        world(pipeline.changed(seed=1))


def test_steps_are_in_the_order_of_the_code_whichever_branch_ends_first():
    pipeline = Noting("store")
    branch = replace(pipeline, steps=pipeline.steps.branch())
    world(pipeline, "after")
    world(branch, "before")
    assert [each.name for each in ids(pipeline)] == ["before", "after"]


def run_two(pipeline: Noting) -> None:
    @flow(name="two-branches")
    def two() -> None:
        with branches():
            first = pipeline.submit("first", world, "first")
            world(pipeline, "second")
            first.result()

    two()


@pytest.mark.usefixtures("prefect_server")
def test_branches_on_pools_overlap_and_give_the_same_steps_as_one_after_the_other():
    """Neither of two steps can end before the other has begun."""
    together = threading.Barrier(2, timeout=300)
    overlapping = Noting("store", placement=ON_A_POOL, before=together.wait)
    run_two(overlapping)
    for placement in (Placement(), ON_A_POOL.model_copy(update={"branches": "one by one"})):
        alone = Noting("store", placement=placement)
        run_two(alone)
        assert alone.titles == ["make the world"] * 2
        assert list(alone.steps) == list(overlapping.steps)


@pytest.mark.usefixtures("prefect_server")
def test_the_error_of_a_branch_stops_the_others_and_is_raised():
    def until_stopped(pipeline: Pipeline) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            stop_if_asked()
            time.sleep(0.01)

    def wrong(pipeline: Pipeline) -> None:
        raise DataError("wrong")

    @flow(name="failing-branch")
    def failing(own: Callable[[Pipeline], None], other: Callable[[Pipeline], None]) -> None:
        pipeline = Noting("store", placement=ON_A_POOL)
        with branches():
            future = pipeline.submit("other", other)
            own(pipeline)
            future.result()

    for own, other in ((until_stopped, wrong), (wrong, until_stopped)):
        with pytest.raises(DataError, match="wrong"):
            failing(own, other)


def test_stages_in_this_process_take_turns():
    at_once, most = [], []

    def work() -> None:
        with turn_in_this_process():
            at_once.append(1)
            most.append(len(at_once))
            time.sleep(0.01)
            at_once.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 4


def test_a_step_of_a_record_is_read_as_it_was_written():
    step = Step(
        id=StepId("expand", 1, "test"), title="t", artifact=Artifact(key="expand-1", digest="1")
    )
    assert Step.model_validate_json(step.model_dump_json()) == step
