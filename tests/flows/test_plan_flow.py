"""Plans: the steps of the loop itself, at the cost of earlier runs; nothing is made."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tiny_loop
import yaml
from prefect import flow
from released import PAIRS, write_array
from typer.testing import CliRunner

from expandr_cli.plan import by_stage
from expandr_core.errors import DataError
from expandr_core.options.loop import JointLoopOptions
from expandr_core.planning.cost_model import StepCost, costly_options, measured, throughput_of
from expandr_core.store.artifacts import Artifact
from expandr_core.store.run_records import StepId
from expandr_core.store.store import Store
from flows.plan import Calibration, Plan, learned, plan, subset_of
from tasks.data import prepare_data
from tasks.pipeline import Pipeline

pytestmark = pytest.mark.usefixtures("prefect_server")


def planned(store: str, options: JointLoopOptions = tiny_loop.OPTIONS, **how: Any) -> Plan:
    before = {path.name for path in Path(store, "artifacts").iterdir()}
    found: Any = plan(options=options, store=store, **how)
    assert {path.name for path in Path(store, "artifacts").iterdir()} == before
    return found


def ids_of(ran: list[StepCost]) -> list[StepId]:
    """Leave out what is made for the plan itself."""
    return [each.id for each in ran if each.stage not in ("demo_world", "prepare")]


def test_a_plan_has_the_steps_of_the_run_and_learns_what_they_cost(first):
    store = Store(first.record.store)
    ran = measured(store, first.record.steps)
    found = planned(store.url)
    assert [each.id for each in found.steps] == ids_of(ran)
    costs, real = by_stage(found.steps), by_stage(ran)
    for stage, own in costs.items():
        if own.steps == real[stage].steps == 1:  # its own rate, times a workload predicted to 10 %
            assert own.seconds == pytest.approx(real[stage].seconds, rel=0.1, abs=0.1), stage
        assert own.bytes == pytest.approx(real[stage].bytes, rel=0.2), stage
    workloads = {each.id: each.workload for each in ran}
    for each in found.steps:
        assert each.workload == pytest.approx(workloads[each.id], rel=0.1, abs=1), each.id


def test_a_calibration_tells_what_every_stage_costs_whatever_steps_are_called(
    first, store, monkeypatch
):
    monkeypatch.setattr(Pipeline, "_full", lambda self, title: "reworded")
    found: Any = plan(options=tiny_loop.OPTIONS, store=str(store), calibrate=True, sample=8)
    assert found.throughputs[0].source == "a calibration with 8 queries"
    ran = measured(Store(first.record.store), first.record.steps)
    assert [each.id for each in found.steps] == ids_of(ran)
    assert all(each.seconds > 0 and each.bytes > 0 for each in found.steps)


def test_a_cost_that_earlier_runs_lack_is_measured_but_not_to_compare_a_run_with(first, store):
    opened = Store(str(store))
    [record] = opened.records()
    known = [step for step in record["steps"] if step["id"][0] != "dpo"]
    opened.write_record(record["name"], record | {"steps": known})
    later = datetime.now(UTC) + timedelta(days=1)
    lacking = f"as in {first.record.name}: no cost of the stage 'dpo'; `--calibrate` measures it"
    with pytest.raises(DataError, match=lacking):
        planned(str(store), before=later)
    found: Any = plan(options=tiny_loop.OPTIONS, store=str(store), sample=8)
    assert found.throughputs[0].source == "a calibration with 8 queries"
    assert [each.seconds > 0 for each in found.steps if each.stage == "dpo"] == [True]


def test_a_calibrated_start_from_pairs_builds_each_model_once(store, tmp_path, monkeypatch):
    known = planned(str(store)).throughputs[0]
    monkeypatch.setattr(Calibration, "run", lambda *given: known)
    tiny, pairs = tiny_loop.OPTIONS, write_array(tmp_path / "pairs.json", PAIRS)
    changes = {
        "data": tiny.data.model_copy(update={"pairs": str(pairs)}),
        "loop": tiny.loop.model_copy(update={"start_from": "pairs"}),
        "preferences": tiny.preferences.model_copy(update={"minimum_pairs": 5}),
    }
    options = tiny.model_copy(update=changes)
    found: Any = plan(options=options, store=str(store), calibrate=True)
    stages = {step.stage for step in found.steps}
    assert "dpo" in stages and not {"reward", "pairs"} & stages


def test_each_stage_loads_its_libraries_once(first):
    before = planned(first.record.store)
    loading = {
        stage: costs.model_copy(update={"load_seconds": 100})
        for stage, costs in before.throughputs[0].stages.items()
    }
    throughput = before.throughputs[0].model_copy(update={"stages": loading})
    after = by_stage(planned(first.record.store, throughput=throughput).steps)
    for stage, own in by_stage(before.steps).items():
        assert after[stage].seconds == pytest.approx(own.seconds + 100), stage


def test_a_plan_of_lazy_pairs_leaves_out_what_will_not_be_written(first):
    lazy = tiny_loop.OPTIONS.preferences.model_copy(update={"lazy": True, "max_pairs": 4})
    options = tiny_loop.OPTIONS.model_copy(update={"preferences": lazy})
    [whole], [limited] = (
        [
            each
            for each in planned(first.record.store, run).steps
            if each.id[:3] == ("expand", 1, "candidates")
        ]
        for run in (tiny_loop.OPTIONS, options)
    )
    assert 4 * 4 <= limited.counts["texts"] < whole.counts["texts"]
    assert limited.seconds < whole.seconds


def test_a_run_that_is_over_is_compared_with_a_plan_by_saved_throughputs(first, store, tmp_path):
    from expandr_cli.main import app

    file = tmp_path / "throughputs.yaml"
    throughput = throughput_of(
        measured(Store(first.record.store), first.record.steps), "the first run"
    )
    file.write_text(yaml.safe_dump(throughput.model_dump()))
    command = [
        "plan",
        "--run",
        "latest",
        "--store",
        str(store),
        "--throughputs",
        str(file),
    ]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    row = next(line for line in result.output.splitlines() if line.startswith("│ merge"))
    _, stage, steps, _, predicted, _, took, _, ratio, _ = map(str.strip, row.split("│"))
    assert (stage, steps, predicted, ratio) == ("merge", "1", took, "1.00")
    assert f"Throughputs: the first run, in {file}." in " ".join(result.output.split())


def test_a_plan_says_what_its_throughputs_do_not_tell(first, store, tmp_path):
    from expandr_cli.main import app

    throughput = throughput_of(measured(Store(str(store)), first.record.steps), "the first run")
    old, file = throughput.model_dump(), tmp_path / "throughputs.yaml"
    old["stages"]["evaluate"]["per_second"].pop("similarities")
    file.write_text(yaml.safe_dump(old))
    command = ["plan", "--run", "latest", "--store", str(store), "--throughputs", str(file)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    said = "do not tell what the similarities of evaluate cost, so the plan counts them as free"
    assert said in " ".join(result.output.split())


def test_a_calibration_measures_the_pairs_that_are_held_out(first, store):
    options = tiny_loop.OPTIONS.model_copy(
        update={
            "preferences": tiny_loop.OPTIONS.preferences.model_copy(update={"dpo_dev_share": 0.25})
        }
    )
    found: Any = plan(options=options, store=str(store), calibrate=True, sample=16)
    [dpo] = (each for each in found.steps if each.stage == "dpo")
    assert dpo.workload["dev pairs"] > 0
    assert "dev pairs" in found.throughputs[0].of("dpo").per_second


def test_a_run_that_nothing_came_before_is_not_compared_with_itself(store):
    from expandr_cli.main import app

    result = CliRunner().invoke(app, ["plan", "--run", "latest", "--store", str(store)])
    assert result.exit_code == 2
    assert "no run with these models ended before that one" in result.output


def test_a_sample_of_the_data_keeps_whole_queries(first, store):
    found = {}

    @flow(name="sample")
    def sample() -> None:
        pipeline = Pipeline(str(store), tiny_loop.OPTIONS)
        data = prepare_data(pipeline)
        found["whole"], found["small"] = data, subset_of(pipeline, data, 5)

    sample()
    opened = Store(str(store))

    def rows(table: Artifact) -> list[dict[str, Any]]:
        return pq.read_table(opened.local(table)).to_pylist()

    for part in ("preference", "retriever"):
        whole, small = (rows(getattr(found[which], part)) for which in ("whole", "small"))
        ids = {row["query_id"] for row in small}
        assert len(ids) == 5
        assert small == [row for row in whole if row["query_id"] in ids]
    assert len(rows(found["small"].evaluations["test"].queries)) == 5
    assert len(rows(found["small"].corpus)) == min(5 * 16, len(rows(found["whole"].corpus)))


def test_a_run_that_did_not_record_its_models_is_none_to_learn_from(tmp_path):
    store = Store(str(tmp_path))
    record = {"kind": "evaluate-suite", "name": "1", "finished": "2026-01-01T00:00:00+00:00"}
    store.write_record("1", {**record, "steps": []})
    assert learned(store, costly_options(tiny_loop.OPTIONS), None) is None


def test_a_step_that_the_latest_runs_leave_out_is_learned_from_an_older_one(first, store):
    opened, options = Store(str(store)), tiny_loop.OPTIONS
    [record] = opened.records()
    aligning = ("reward", "pairs", "audit_pairs", "dpo", "merge")
    left = [
        step
        for step in record["steps"]
        if step["id"][0] not in aligning and step["id"][2] not in ("candidates", "answers")
    ]
    loop = record["options"]["loop"] | {"order": "retriever_only"}
    for number in range(3):
        later = {
            "name": f"9{number}",
            "finished": f"2100-01-0{number + 1}T00:00:00+00:00",
            "steps": left,
            "options": record["options"] | {"loop": loop},
        }
        opened.write_record(later["name"], record | later)
    found = learned(opened, costly_options(options), None)
    alone = throughput_of(measured(opened, first.record.steps), "the first run")
    assert found
    assert found.of("dpo") == alone.of("dpo")
    assert found.tokens_per_text.keys() == alone.tokens_per_text.keys()


def test_an_encoding_that_copied_its_vectors_tells_nothing_of_the_cost(first, store):
    opened, options = Store(str(store)), costly_options(tiny_loop.OPTIONS)
    [record] = opened.records()
    alone = learned(opened, options, None)
    for step in record["steps"]:
        if step["id"][0] == "encode":
            step["artifact"]["counts"] |= {"encoded": 1, "reused": 10_000}
    later = {"name": "9", "finished": "2100-01-01T00:00:00+00:00"}
    opened.write_record("9", record | later)
    both = learned(opened, options, None)
    assert alone and both
    assert both.of("encode") == alone.of("encode")
    (Path(opened.root) / "runs" / f"{first.record.name}.json").unlink()
    assert learned(opened, options, None) is None  # a calibration tells
