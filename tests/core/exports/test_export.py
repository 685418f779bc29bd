"""What is exported can be imported again: the same pairs, examples and expansions."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from released import PAIRS, TURN, write_array
from safetensors.numpy import save_file
from store_keys import full

from expandr_core.data.formats.triples import text_id
from expandr_core.errors import DataError
from expandr_core.exports.export import export_artifact, export_training_data, new_folder
from expandr_core.exports.training_data import export_examples
from expandr_core.preferences.pairs import pairs_schema
from expandr_core.records import EXAMPLES, EXPANSIONS, NEGATIVES
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.runner import make_spec, run_stage
from expandr_core.stages import import_pairs
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store


@pytest.fixture
def store(tmp_path: Path, llm_folder: Path) -> Store:
    store = Store(str(tmp_path / "store"))
    put(store, "tiny_llm-1", shutil.copytree(llm_folder, store.scratch / "llm"))
    return store


def put(store: Store, key: str, folder: Path, **facts: Any) -> Artifact:
    inputs = {role: each.model_dump() for role, each in facts.pop("inputs", {}).items()}
    return store.commit(full(key), folder, [], {"counts": {}, "inputs": inputs, **facts})


def write(folder: Path, name: str, rows: list[dict[str, Any]], schema: pa.Schema) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / name, compression="zstd")
    return folder


def file(folder: Path, name: str, content: str = "{}") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content)
    return folder


def own_pairs(store: Store, prompt: str = "q2d", measured: bool = False) -> Artifact:
    """Pairs that the loop has made, with what the layout of the release has no place for."""
    rows = [
        {
            "query_id": f"q{number:02}",
            "query": f"why is thing {number} grey?\nPassage:",
            "split": "dev" if number % 7 == 3 else "train",
            "margin": 1 / (number + 3),
            "chosen_text": f"text {number}", "chosen_sample": number, "chosen_reward": 2 / 3,
            "rejected_text": f"hello {number}", "rejected_sample": 0, "rejected_reward": 0.1,
            "chosen_finish_reason": "stop", "rejected_finish_reason": "length",
            "chosen_similarity": 0.1 + 0.2, "rejected_similarity": -1e-17,
        }
        for number in range(30)
    ]  # fmt: skip
    if measured:
        names = ("query_retrieval", "chosen_retrieval", "rejected_retrieval")
        rows = [row | {name: 1 / 3 for name in names} for row in rows]
    folder = store.scratch / "made"
    options = {"prompt": {"name": prompt, "max_tokens": 90}}
    candidates = put(store, "expand-1", file(folder / "c", "x"), options=options)
    rewards = put(store, "reward-1", file(folder / "r", "x"), inputs={"candidates": candidates})
    table = write(folder / "p", "pairs.parquet", rows, pairs_schema(measured))
    return put(store, "pairs-1", table, inputs={"rewards": rewards})


def imported(store: Store, location: Path, prompt: str = "q2d", **options: Any) -> Artifact:
    found = store.lookup(full("tiny_llm-1"))
    assert found
    settings = import_pairs.OPTIONS(
        **{"prompt": prompt, "dpo_dev_share": 0.3, "location": str(location)} | options
    )
    sources = import_pairs.source_digests(settings)
    spec = make_spec("import_pairs", settings, {"llm": found}, sources=sources)
    return run_stage(spec, store, no_progress)


def exported(store: Store, artifact: Artifact, folder: Path) -> Path:
    with new_folder(folder) as partial:
        export_artifact(store, artifact, partial)
    return folder


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("prompt", ["q2d", "q2e"])
def test_pairs_of_ours_come_back_as_they_were(store, tmp_path, prompt, measured):
    own = own_pairs(store, prompt, measured)
    folder = exported(store, own, tmp_path / "pairs")
    assert sorted(path.name for path in folder.iterdir()) == ["dev.json", "train.json"]
    back = imported(store, folder, prompt)
    assert back.files == own.files and back.digest == own.digest


def test_pairs_of_the_release_come_back_as_they_were_and_in_its_layout(store, tmp_path):
    other = {"prompt": "In other words?", "chosen": "text", "rejected": "hello"}
    given = imported(store, write_array(tmp_path / "pairs.json", [*PAIRS, other]))
    folder = exported(store, given, tmp_path / "pairs")
    rows = [
        row
        for name in ("train", "dev")
        for row in json.loads((folder / f"{name}.json").read_text())
    ]
    assert all(row.keys() == {"conversations", "chosen", "rejected"} for row in rows)
    assert sorted(map(json.dumps, rows)) == sorted(
        json.dumps(row)
        for row in [
            *PAIRS,
            {
                "conversations": [{"from": "human", "value": "In other words?"}],
                "chosen": {"from": "gpt", "value": "text"},
                "rejected": {"from": "gpt", "value": "hello"},
            },
        ]
    )
    assert imported(store, folder).digest == given.digest


def test_pairs_whose_prompt_is_forgotten_are_not_exported(store, tmp_path):
    own = own_pairs(store)
    store.remove(full("expand-1"))
    with pytest.raises(DataError, match="the candidates that it was chosen from are gone"):
        exported(store, own, tmp_path / "pairs")


# Examples with their expansions


def example(query: str, positive: str, negatives: list[str]) -> dict[str, Any]:
    return {
        "query_id": f"nq-{query}", "query": query, "source": "nq", "positive_id": text_id(positive),
        "positive": positive, "negatives": negatives, "negative_ids": list(map(text_id, negatives)),
    }  # fmt: skip


EXAMPLE_ROWS = [example("a", "p", ["n"]), example("a", "q", ["n"]), example("b", "r", [])]
WRITTEN = [("nq-b", 0, "of b"), ("nq-a", 1, "of a too"), ("nq-a", 0, "of a"), ("nq-b", 1, "of b"),
           ("nq-a", 2, "of a again")]  # fmt: skip
LINES = [
    {"query": "a", "pseudo_doc": "of a", "pos": ["p"], "neg": ["n"]},
    {"query": "a", "pseudo_doc": "of a too", "pos": ["q"], "neg": ["n"]},
    {"query": "a", "pseudo_doc": "of a again", "pos": ["p"], "neg": ["n"]},
    {"query": "b", "pseudo_doc": "of b", "pos": ["r"], "neg": ["m", "l"]},
]


def expansion(query_id: str, sample: int, text: str) -> dict[str, Any]:
    return {"query_id": query_id, "sample": sample, "text": text}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_positive_and_every_expansion_is_in_a_row(tmp_path):
    examples = write(tmp_path / "e", "retriever.parquet", EXAMPLE_ROWS, EXAMPLES)
    shards = [
        write(
            tmp_path / f"s{n}", "expansions.parquet", [expansion(*row) for row in some], EXPANSIONS
        )
        for n, some in enumerate((WRITTEN[:2], WRITTEN[2:]))
    ]
    mined = [
        {"query_id": "nq-a", "negatives": ["x"], "negative_ids": ["1"]},  # it has its own
        {"query_id": "nq-b", "negatives": ["m", "l"], "negative_ids": ["2", "3"]},
    ]
    negatives = write(tmp_path / "m", "negatives.parquet", mined, NEGATIVES) / "negatives.parquet"
    written = export_examples(examples / "retriever.parquet", shards, negatives, tmp_path)
    assert written == {"nq.jsonl": 4}
    assert lines(tmp_path / "nq.jsonl") == LINES


def test_examples_without_expansions_have_no_pseudo_doc(tmp_path):
    examples = write(tmp_path / "e", "retriever.parquet", EXAMPLE_ROWS, EXAMPLES)
    export_examples(examples / "retriever.parquet", [], None, tmp_path)
    assert lines(tmp_path / "nq.jsonl") == [
        {"query": "a", "pos": ["p"], "neg": ["n"]},
        {"query": "a", "pos": ["q"], "neg": ["n"]},
        {"query": "b", "pos": ["r"], "neg": []},
    ]


def test_queries_without_positives_are_not_training_data(tmp_path):
    path = write(
        tmp_path,
        "test_queries.parquet",
        [{"query_id": "q"}],
        pa.schema([("query_id", pa.string())]),
    )
    with pytest.raises(DataError, match=r"test_queries\.parquet holds queries without positives"):
        export_examples(path / "test_queries.parquet", [], None, tmp_path)


# Folders


def trained_models(store: Store) -> dict[str, Artifact]:
    """The artifacts of a round, as far as the export reads them."""
    made = store.scratch / "made"
    pairs = own_pairs(store)
    adapter = put(store, "dpo-1", file(made / "a", "adapter_config.json"), inputs={"pairs": pairs})
    llm = put(store, "merge-1", file(made / "l", "config.json"), inputs={"adapter": adapter})
    examples = put(
        store, "prepare-1", write(made / "e", "retriever.parquet", EXAMPLE_ROWS, EXAMPLES)
    )
    shard = write(
        made / "s", "expansions.parquet", [expansion(*row) for row in WRITTEN], EXPANSIONS
    )
    part = put(store, "expand_shard-2", shard)
    (made / "nothing").mkdir()
    facts = {"counts": {}, "inputs": {"queries": examples.at("retriever.parquet").model_dump()}}
    expansions = store.commit(full("expand-2"), made / "nothing", [part], facts)
    inputs = {"examples": examples.at("retriever.parquet"), "expansions": expansions}
    retriever = put(
        store, "train_retriever-1", file(made / "t", "modules.json", "[]"), inputs=inputs
    )
    return {"llm": llm, "retriever": retriever, "adapter": adapter, "expansions": expansions}


def test_what_models_were_trained_on_is_exported(store, tmp_path):
    models = trained_models(store)
    with new_folder(tmp_path / "out") as folder:
        written = export_training_data(store, models["llm"], models["retriever"], folder)
    assert written == {
        "llm_training_data/train.json": 26,
        "llm_training_data/dev.json": 4,
        "retriever_training_data/nq.jsonl": 4,
    }
    found = {
        str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.json*")
    }
    assert found == {*written}  # and no manifest
    row = json.loads((tmp_path / "out/llm_training_data/train.json").read_text())[0]
    assert row["conversations"][0]["value"] == TURN.format("why is thing 0 grey?\nPassage:")


def test_an_adapter_and_expansions_are_exported_alone(store, tmp_path):
    models = trained_models(store)
    adapter = exported(store, models["adapter"], tmp_path / "adapter")
    assert [path.name for path in adapter.iterdir()] == ["adapter_config.json"]
    expansions = exported(store, models["expansions"], tmp_path / "expansions")
    assert lines(expansions / "nq.jsonl") == [*LINES[:3], LINES[3] | {"neg": []}]


def test_other_artifacts_are_refused_and_leave_nothing(store, tmp_path):
    rewards = put(store, "reward-2", file(store.scratch / "r", "x"))
    with pytest.raises(DataError, match="cannot be exported; name preference pairs"):
        exported(store, rewards, tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_others_may_read_what_a_library_wrote_for_its_owner_alone(tmp_path):
    with new_folder(tmp_path / "out") as folder:
        save_file({"weight": np.zeros(2, np.float32)}, folder / "model.safetensors")
        (folder / "plain").touch()
    modes = {path.name: path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert modes["model.safetensors"] == modes["plain"]


def test_nothing_is_overwritten_and_what_a_kill_left_is_replaced(tmp_path):
    target = tmp_path / "out"
    file(tmp_path / ".out.partial", "half.json")
    with new_folder(target) as folder:
        file(folder, "whole.json")
    assert [path.name for path in target.iterdir()] == ["whole.json"]
    assert not (tmp_path / ".out.partial").exists()
    with (
        pytest.raises(DataError, match=r"out exists, and nothing is overwritten"),
        new_folder(target),
    ):
        pass


def test_of_two_exports_to_one_folder_the_second_is_refused(tmp_path):
    target = tmp_path / "out"
    with new_folder(target) as folder:
        file(folder, "whole.json")
        with (
            pytest.raises(DataError, match="out is being written by another process"),
            new_folder(target),
        ):
            pass
        assert folder.is_dir()
    assert [path.name for path in target.iterdir()] == ["whole.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "made").mkdir()
    with pytest.raises(DataError, match="made exists"), new_folder(tmp_path / "late") as folder:
        shutil.copytree(target, tmp_path / "late")  # by something else, meanwhile
        with new_folder(tmp_path / "made"):
            pass


FULL = """
import resource, signal, sys
from pathlib import Path
from expandr_core.exports.export import new_folder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with new_folder(Path(sys.argv[1])) as folder:
    (folder / "model").write_bytes(bytes(2000))
"""


def test_a_full_disk_is_named_with_the_remedy_and_nothing_stays(tmp_path):
    command = [sys.executable, "-c", FULL, str(tmp_path / "out")]
    end = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"{tmp_path}: the disk is full" in end.stderr
    assert "free some space there, or name a folder on another disk" in end.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "plain").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for name, fault in (
        ("plain/out", "plain is not a folder"),
        ("plain/a/out", "plain.* is not a folder"),
        ("link", "link exists"),
    ):
        with pytest.raises(DataError, match=f"{fault}.*name another"), new_folder(tmp_path / name):
            raise AssertionError("it was written")
    with pytest.raises(DataError, match="/ exists"), new_folder(Path("/")):
        raise AssertionError("it was written")
    assert {path.name for path in tmp_path.iterdir()} == {"plain", "link"}
