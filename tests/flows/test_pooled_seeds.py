"""Runs that differ in their seed become one report, whose numbers can be explained."""

import pytest

from benchmarks.pooled_seeds import compared, pooled_seeds
from expandr_core.errors import DataError
from expandr_core.evaluation.comparison import read_comparison
from expandr_core.lineage.explain import check_all
from expandr_core.lineage.finding import find_run
from expandr_core.store.store import Store
from tasks.pipeline import Pipeline


def test_pooled_runs_are_paired_by_seed_and_their_tests_corrected_together(first, store):
    opened, name = Store(str(store)), first.record.name
    [record] = opened.records()
    again = f"{name}-again"  # the same evaluations, as if of another seed
    options = record["options"] | {"seed": record["options"]["seed"] + 1}
    opened.write_record(again, record | {"name": again, "options": options})

    pooled = pooled_seeds(runs={"a": [name, again], "b": [name]}, store=str(store))
    found, own = (
        read_comparison(opened.local(report)) for report in (pooled.report, first.record.report)
    )
    [kept, also] = [row for row in found["results"] if row["system"] == "found"]
    [alone] = [row for row in own["results"] if row["system"] == own["kept"]["expanded"]]
    assert (kept["dataset"], kept["seeds"], kept["ndcg_at_10_deviation"]) == ("a", 2, 0)
    assert kept["ndcg_at_10"] == also["ndcg_at_10"] == alone["ndcg_at_10"]
    tests = {(each["before"], each["after"], each["dataset"]): each for each in found["contrasts"]}
    one, other = tests["query", "found", "a"], tests["query", "found", "b"]
    assert one["clusters"] == other["clusters"] and one["p"] == pytest.approx(other["p"])
    smallest = min(each["p"] for each in found["contrasts"])
    assert min(each["corrected_p"] for each in found["contrasts"]) == min(1, smallest * len(tests))
    assert {each["dataset"] for each in found["leakage"]} == {"a/seed-1", "a/seed-2", "b/seed-1"}
    checked = check_all(opened, find_run([opened], pooled.name)[1])
    assert len(checked) > 100 and not [each for each in checked if not each["check"]["agrees"]]


def test_runs_that_differ_in_more_than_their_seed_are_not_pooled(first, store):
    opened, name = Store(str(store)), first.record.name
    [record] = opened.records()
    options = record["options"] | {"seed": 9, "dpo": record["options"]["dpo"] | {"beta": 0.7}}
    opened.write_record(f"{name}-beta", record | {"name": f"{name}-beta", "options": options})
    with pytest.raises(DataError, match=rf"{name}-beta differs from {name} in dpo\.beta, not only"):
        compared(Pipeline(str(store)), {"a": [name, f"{name}-beta"]})


def test_a_seed_is_not_pooled_twice(first):
    with pytest.raises(DataError, match="a second run of a with seed-1"):
        compared(Pipeline(first.record.store), {"a": [first.record.name] * 2})
