"""The frames of a run, and the example of docs/notebooks.md."""

import json
import re
import shutil
from pathlib import Path

import pytest

from expandr_core.errors import DataError
from expandr_core.lineage.frames import Results, RunResults
from expandr_core.store.store import Store

PAGE = Path(__file__).parents[3] / "docs" / "notebooks.md"


@pytest.fixture
def results(recorded) -> RunResults:
    return Results(recorded.root).run("latest")


def test_the_example_of_the_page_runs(recorded):
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S))
    values: dict = {}
    exec(code.replace('Results("store")', f"Results({recorded.root!r})"), values)
    assert len(values["best"]) == len(values["gain"]) == 18
    assert values["best"]["gain"].is_monotonic_decreasing
    assert values["explained"]["check"]["agrees"]


def test_the_means_of_the_queries_are_the_numbers_of_the_report(results):
    means = results.per_query().groupby("system")["ndcg_at_10"].mean()
    systems = results.systems().set_index("system")
    assert len(systems) == 12
    for name, value in means.items():
        assert value == pytest.approx(systems["ndcg_at_10"][name], abs=1e-12)


def test_texts_pairs_and_candidates_have_their_queries(results):
    texts, candidates = results.texts("round-1"), results.candidates()
    assert set(texts["query_id"]) == set(results.per_query("round-1")["query_id"])
    assert texts["query"].notna().all()
    pairs = results.pairs().merge(candidates, left_on=["query_id", "chosen_sample"],
                                  right_on=["query_id", "sample"])  # fmt: skip
    assert (pairs["chosen_text"] == pairs["text"]).all() and len(pairs) == len(results.pairs())


def test_what_is_not_there_is_refused_with_what_is(recorded, results):
    with pytest.raises(DataError, match=r"no finished run 'x' in (.|\n)*smart-frog"):
        Results(recorded.root).run("x")
    with pytest.raises(DataError, match="no system 'x'"):
        results.per_query("x")
    with pytest.raises(DataError, match="queries alone"):
        results.texts("query")
    with pytest.raises(DataError, match=r"no dataset 'x'; there are \['test'\]"):
        results.texts("round-1", dataset="x")
    with pytest.raises(DataError, match="round-1 has no seed 3; there are 1, from 0"):
        results.texts("round-1", seed=3)
    with pytest.raises(DataError, match=r"round 7 of .* has no pairs; there are \[1\]"):
        results.pairs(round=7)


def test_a_record_of_a_newer_version_leaves_the_others_listed(recorded, tmp_path, caplog):
    folder = shutil.copytree(recorded.root, tmp_path / "store")
    [path] = folder.glob("runs/*.json")
    newer = json.loads(path.read_text()) | {"schema": 99, "name": "29990101T000000-newer"}
    (folder / "runs" / "29990101T000000-newer.json").write_text(json.dumps(newer))
    assert list(Results(str(folder)).runs()["name"]) == [path.stem]
    assert "29990101T000000-newer was recorded by a newer version" in caplog.text


def test_an_unfinished_run_is_told_from_one_that_is_not_there(recorded, tmp_path):
    folder = shutil.copytree(recorded.root, tmp_path / "store")
    store = Store(str(folder))
    note = {"name": "20261201T000000-slow-cat", "state": "failed", "message": "no space"}
    store.write_note(note["name"], note)
    with pytest.raises(DataError, match=r"slow-cat has not finished \(failed: no space\)"):
        Results(str(folder)).run("20261201")
    [path] = folder.glob("runs/*.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "kind": "evaluate-suite"}))
    assert Results(str(folder)).run("latest").record.kind == "evaluate-suite"
