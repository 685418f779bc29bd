"""What differs upstream of two runs' numbers is named, and nothing else."""

import hashlib
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from doctored import doctored

from expandr_core.errors import DataError
from expandr_core.lineage.compare_runs import as_table, compare_runs
from expandr_core.lineage.compared_run import ComparedRun
from expandr_core.lineage.differences import upstream_differences
from expandr_core.lineage.nodes import Lineage
from expandr_core.lineage.tables import RowDifference, row_difference
from expandr_core.lineage.upstream import said_of
from expandr_core.options.loop import JointLoopOptions
from expandr_core.records import PASSAGES
from expandr_core.store.artifacts import content_digest
from expandr_core.store.manifests import sealed
from expandr_core.store.store import Store


def compared(one, other):
    return compare_runs([ComparedRun(*one), ComparedRun(*other)])


def changed_rows(found):
    return {row["system"]: row["upstream"][0] for row in found["rows"] if row["upstream"]}


def rewritten(manifest, folder: Path, name: str, table: pa.Table) -> None:
    """Write a table of an artifact anew, and put its digest into the manifest."""
    pq.write_table(table, folder / name)
    [file] = [each for each in manifest["files"] if each["path"] == name]
    content = (folder / name).read_bytes()
    file |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_runs_with_equal_numbers_have_nothing_upstream(recorded, run):
    found = compared((recorded, run), (recorded, run))
    assert not changed_rows(found)
    assert all(row["tests"][0]["difference"] == 0 for row in found["rows"])


def test_of_two_runs_that_differ_in_an_option_only_it_is_named(recorded, run, tmp_path):
    def another_beta(manifest, folder):
        manifest["options"]["training"]["beta"] = 0.2

    store, other = doctored(recorded, run, tmp_path / "store", {"dpo": another_beta})
    options = {**other.options, "dpo": {**other.options["dpo"], "beta": 0.2}}
    other = other.model_copy(update={"options": options})
    upstream = changed_rows(compared((recorded, run), (store, other)))
    assert {"round-1", "aligned-1", "round-1-query"} <= upstream.keys()
    assert not {"query", "untrained", "bm25", "control"} & upstream.keys()
    for each in upstream.values():
        assert each.keys() == {"run", "options", "first"}
        assert each["options"] == {"dpo.beta": [0.1, 0.2]}
        assert [first["what"] for first in each["first"]] == [["option dpo.beta: 0.1 → 0.2"]]
    assert upstream["aligned-1"]["first"][0]["paths"] == [
        "measured on test ← expansions ← llm ← adapter"
    ]
    assert sorted(upstream["round-1"]["first"][0]["paths"]) == [
        "measured on test ← embeddings ← retriever ← expansions ← llm ← adapter",
        "measured on test ← expansions ← llm ← adapter",
        "measured on test ← retriever ← expansions ← llm ← adapter",
    ]


def test_of_two_commits_the_code_is_named(recorded, run, tmp_path):
    def another_commit(manifest, folder):
        manifest["commit"] = "0123456789ab"

    stages = {step.id.stage for step in run.steps}
    other = doctored(recorded, run, tmp_path / "store", dict.fromkeys(stages, another_commit))
    upstream = changed_rows(compared((recorded, run), other))
    assert len(upstream) == 12
    for each in upstream.values():
        assert each.keys() == {"run", "code", "first"}
        assert each["code"] == {"commit": ["a5fb1e5d2471", "0123456789ab"]}
        said = [first["what"] for first in each["first"]]
        assert said and all(what == ["commit: a5fb1e5d2471 → 0123456789ab"] for what in said)


def test_of_two_corpora_the_documents_are_named(recorded, run, tmp_path):
    def another_corpus(manifest, folder):
        rows = pq.read_table(folder / "corpus.parquet").to_pylist()
        rows[3]["text"] += " more"
        extra = {"passage_id": "new", "title": "", "text": "new"}
        table = pa.Table.from_pylist([*rows[:10], *rows[12:], extra], schema=PASSAGES)
        rewritten(manifest, folder, "corpus.parquet", table)
        manifest["sources"] = {"corpus.jsonl": "1" * 64}

    other = doctored(recorded, run, tmp_path / "store", {"prepare": another_corpus})
    ids = pq.read_table(next(Path(recorded.root).glob("artifacts/prepare-*/corpus.parquet")))
    ids = ids["passage_id"].to_pylist()
    found = compared((recorded, run), other)
    upstream = changed_rows(found)["bm25"]
    assert upstream["documents"] | {"said": ""} == {
        "removed": 2, "added": 1, "changed": 1, "said": "",
        "first_removed": ids[10], "first_added": "new", "first_changed": ids[3],
    }  # fmt: skip
    assert "queries" not in upstream and "judgements" not in upstream
    assert all("difference" in row["tests"][0] for row in found["rows"])  # the queries are the same
    assert any("documents: 2 removed" in text for text in as_table(found)[0].values())


def test_queries_that_differ_are_not_paired(recorded, run, tmp_path):
    def another_judgement(manifest, folder):
        rows = pq.read_table(folder / "test_qrels.parquet")
        rewritten(manifest, folder, "test_qrels.parquet", rows.slice(1))

    other = doctored(recorded, run, tmp_path / "store", {"prepare": another_judgement})
    found = compared((recorded, run), other)
    for row in found["rows"]:
        [test] = row["tests"]
        assert test["refused"].startswith("not paired: the runs have other judgements: 1 removed, ")
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hardware": "arm64, 4 cores"}, "hardware: {hardware} → arm64, 4 cores"),
        ({"commit": "a5fb1e5d2471-dirty"}, "commit: a5fb1e5d2471 → a5fb1e5d2471-dirty"),
    ],
)
def test_what_may_have_changed_the_bytes_is_named(recorded, run, tmp_path, changes, said):
    before = {}

    def elsewhere(manifest, folder):
        before.update(manifest)
        manifest.update(changes)

    other = doctored(recorded, run, tmp_path / "store", {"merge": elsewhere})
    found = changed_rows(compared((recorded, run), other))["aligned-1"]
    [first] = found["first"]
    assert first["what"] == [said.format(**before)]
    assert said_of(found) == first["what"] or "code" in found


def test_an_option_that_a_version_did_not_have_is_not_taken_for_its_default(recorded, run):
    newer = {**run.options, "gate": {"mode": "off"}, "evaluate": {**run.options["evaluate"]}}
    newer["evaluate"]["report"] = JointLoopOptions().evaluate.report
    other = run.model_copy(update={"options": newer, "name": "newer"})
    found = compared((recorded, run), (recorded, other))
    assert found["differ"]["newer"]["options"] == {"gate.mode": ["absent", "off"]}


def test_what_a_version_without_an_option_did_is_compared_with_its_value(recorded, run):
    loop = {**run.options["loop"], "keep_level": 0.05}
    today = run.model_copy(update={"options": {**run.options, "loop": loop}, "name": "today"})
    older = {name: value for name, value in loop.items() if name != "keep_level"}
    other = run.model_copy(update={"options": {**run.options, "loop": older}, "name": "older"})
    found = compared((recorded, today), (recorded, other))
    assert found["differ"]["older"]["options"] == {"loop.keep_level": [0.05, 1.0]}


def test_code_that_no_commit_tells_is_not_said_to_be_the_same(recorded, run, tmp_path):
    def dirty(manifest, folder):
        manifest["commit"] = "a5fb1e5d2471-dirty"

    def dirty_with_other_bytes(manifest, folder):
        dirty(manifest, folder)
        manifest["files"].append({"path": "more", "size": 0, "sha256": "0" * 64})

    changes = dict.fromkeys({step.id.stage for step in run.steps}, dirty)
    one = doctored(recorded, run, tmp_path / "1", changes)
    other = doctored(recorded, run, tmp_path / "2", changes | {"merge": dirty_with_other_bytes})
    [first] = changed_rows(compared(one, other))["aligned-1"]["first"]
    assert "the code is not known to the commit" in first["what"][0]


def test_a_library_that_one_run_lacks_is_named(recorded, run, tmp_path):
    def without_faiss(manifest, folder):
        manifest["libraries"]["faiss-gpu"] = manifest["libraries"].pop("faiss-cpu")

    other = doctored(recorded, run, tmp_path / "store", {"evaluate": without_faiss})
    libraries = changed_rows(compared((recorded, run), other))["query"]["libraries"]
    assert libraries.keys() == {"faiss-cpu", "faiss-gpu"}
    assert libraries["faiss-cpu"][1] == libraries["faiss-gpu"][0] == "absent"


def test_runs_of_one_name_are_told_apart(recorded, run, tmp_path):
    other = doctored(recorded, run, tmp_path / "store", {"dpo": lambda manifest, folder: None})
    runs = [ComparedRun(recorded, run), ComparedRun(*other), ComparedRun(recorded, run)]
    found = compare_runs(runs)
    assert found["runs"] == [run.name, f"{run.name} (2)", f"{run.name} (3)"]
    [row] = [each for each in found["rows"] if each["system"] == "aligned-1"]
    assert row["values"][f"{run.name} (2)"] == pytest.approx(row["values"][run.name] + 0.01)
    assert [each["run"] for each in row["upstream"]] == [f"{run.name} (2)"]
    assert set(as_table(found)[0]) >= {run.name, f"{run.name} (2)", f"{run.name} (3)"}


def test_runs_without_a_number_in_common_say_why(recorded, run, tmp_path):
    folder = shutil.copytree(recorded.root, tmp_path / "store")
    path = folder / "artifacts" / run.report.key / "comparison.json"
    comparison = json.loads(path.read_text())
    for row in comparison["results"]:
        row["dataset"] = "scifact"
    path.write_text(json.dumps(comparison))
    other = Store(str(folder)), run.model_copy(update={"name": "another"})
    found = compared((recorded, run), other)
    assert found["apart"] == {
        "another": "the runs measured other datasets, so no number has a counterpart: test; scifact"
    }
    assert compared((recorded, run), (recorded, run))["apart"] == {}


def test_long_lineages_are_compared(tmp_path):
    """As those of hundreds of rounds are."""
    stores = []
    for name in ("1", "2"):
        digest, stores = "", [*stores, Store(str(tmp_path / name))]
        for number in range(1200):
            key = f"merge-{number:020x}"
            file = {"path": "f", "size": 0, "sha256": f"{int(name) * 10000 + number:064x}"}
            inputs = (
                {"llm": {"key": f"merge-{number - 1:020x}", "digest": digest}} if number else {}
            )
            digest = content_digest({"f": file["sha256"]}, [])
            manifest = {"key": key, "digest": digest, "files": [file], "counts": {}, "parts": [],
                        "inputs": inputs, "seed": int(name) if not number else 0}  # fmt: skip
            folder = tmp_path / name / "artifacts" / key
            folder.mkdir(parents=True)
            (folder / "manifest.json").write_text(sealed(manifest))
    last = f"merge-{1199:020x}"
    [first] = upstream_differences(Lineage(stores[0]), Lineage(stores[1]), (last, last))
    assert first.first and first.facts == {"seed": (1, 2)} and len(first.paths[0]) == 1199


def test_other_bytes_from_the_same_inputs_are_said_to_be_so(recorded, run, tmp_path):
    other = doctored(recorded, run, tmp_path / "store", {"merge": lambda manifest, folder: None})
    upstream = changed_rows(compared((recorded, run), other))["aligned-1"]
    [first] = upstream["first"]
    assert first["what"] == ["the same inputs, options, code and libraries, but other bytes"]
    assert first["artifacts"][0].startswith("merge-")


def test_one_run_is_not_a_comparison(recorded, run):
    with pytest.raises(DataError, match="at least two runs"):
        compare_runs([ComparedRun(recorded, run)])


def test_rows_are_compared_by_id_whatever_their_order(tmp_path):
    def table(name: str, rows: list[tuple[str, str, str]]) -> Path:
        pq.write_table(pa.table(list(zip(*rows, strict=True)), schema=PASSAGES), tmp_path / name)
        return tmp_path / name

    one = table("1", [("a", "", "x"), ("b", "", "y"), ("c", "t", "z")])
    assert not row_difference(
        one, table("2", [("c", "t", "z"), ("a", "", "x"), ("b", "", "y")]), ("passage_id",)
    )
    other = table("3", [("d", "", "x"), ("c", "t", "Z"), ("a", "", "x")])
    assert row_difference(one, other, ("passage_id",)) == RowDifference(1, 1, 1, "b", "d", "c")
    empty = tmp_path / "4"
    pq.write_table(PASSAGES.empty_table(), empty)
    assert row_difference(one, empty, ("passage_id",)) == RowDifference(3, 0, 0, "a")
    assert row_difference(empty, one, ("passage_id",)) == RowDifference(0, 3, 0, "", "a")
