"""Imported pairs: what becomes of each row, and that DPO trains on them as on pairs of our own."""

import contextlib
import json
import os
import shutil
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from evaluation_world import put
from flat_options import flat
from released import PAIRS, TURN, write_array
from store_keys import full

from expandr_core.data.formats.triples import text_id
from expandr_core.errors import DataError
from expandr_core.generation.chat_templates import load_tokenizer
from expandr_core.generation.control_tokens import encode_chat
from expandr_core.options.generation import PromptOptions
from expandr_core.records import PAIRS as SCHEMA
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.runner import make_spec, run_stage
from expandr_core.stages import audit_pairs, dpo, import_pairs, sft
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store

DPO = {"learning_rate": 0.01, "epochs": 1, "batch_size": 4, "device_batch_size": 2,
       "max_tokens": 120, "prompt": PromptOptions(max_tokens=90)}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path, llm_folder: Path) -> Store:
    store = Store(str(tmp_path / "store"))
    folder = shutil.copytree(llm_folder, store.scratch / "llm")
    store.commit(full("tiny_llm-1"), folder, [], {"counts": {}})
    return store


def llm_of(store: Store) -> Artifact:
    found = store.lookup(full("tiny_llm-1"))
    assert found
    return found


def imported(store: Store, location: Path, **options: Any) -> Artifact:
    settings = {"prompt": "q2d", "dpo_dev_share": 0.0, "location": str(location)} | options
    resolved = import_pairs.OPTIONS(**settings)
    sources = import_pairs.source_digests(resolved)
    spec = make_spec("import_pairs", resolved, {"llm": llm_of(store)}, sources=sources)
    return run_stage(spec, store, no_progress)


def rows_of(store: Store, pairs: Artifact) -> list[dict[str, Any]]:
    return pq.read_table(store.local(pairs) / "pairs.parquet").to_pylist()


def aligned(store: Store, pairs: Artifact) -> Artifact:
    inputs = {"llm": llm_of(store), "pairs": pairs}
    return run_stage(
        make_spec("dpo", flat(dpo.OPTIONS, **DPO), inputs, device="cpu"), store, no_progress
    )


# What becomes of a row


def test_the_query_is_taken_out_of_the_wording(store, tmp_path):
    made = imported(store, write_array(tmp_path / "pairs.json", PAIRS))
    rows = rows_of(store, made)
    assert [row["chosen_text"] for row in rows] == [each["chosen"]["value"] for each in PAIRS]
    assert rows[0] == {
        "query_id": text_id("why is thing 0 grey?"),
        "query": "why is thing 0 grey?",
        "split": "train",
        "margin": None,
        "chosen_text": "Thing 0 is of grey text.",
        "rejected_text": "Nobody knows number 0",
        **{f"{side}_finish_reason": "stop" for side in ("chosen", "rejected")},
        **{f"{side}_{name}": None for side in ("chosen", "rejected")
           for name in ("sample", "reward", "similarity")},
    }  # fmt: skip
    assert rows[1]["query_id"] == rows[0]["query_id"]  # a query may have several pairs
    assert made.counts["pairs"] == made.counts["train"] == 30
    assert made.counts["queries"] == 20


def test_a_turn_in_other_words_is_trained_on_as_it_is(store, tmp_path, llm_folder):
    turns = ["Why is it grey?", TURN.format("why?") + " ", "Say: " + TURN.format("why?")]
    turned = [{"prompt": turn, "chosen": "text", "rejected": "hello"} for turn in turns]
    made = imported(store, write_array(tmp_path / "pairs.json", [*turned, PAIRS[0]]))
    rows = rows_of(store, made)
    assert [row["prompt_text"] for row in rows] == [*turns, None]
    assert made.counts["turns kept as they are"] == 3
    task = dpo.prepare(job_of(store, made))
    trained = pairs_of(task.rows / "train")
    tokenizer = load_tokenizer(llm_folder)
    expected = [*turns, TURN.format("why is thing 0 grey?")]
    prompts = [encode_chat(tokenizer, turn) for turn in expected]
    assert [each["prompt_ids"] for each in trained] == prompts
    imitated = sft.token_rows(job_of(store, made, "sft", sft))["train"]
    for row, pair in zip(imitated, trained, strict=True):
        assert row["input_ids"] == pair["prompt_ids"] + pair["chosen_ids"]


def pairs_of(folder: Path) -> list[dict[str, Any]]:
    from datasets import Dataset

    return list(Dataset.load_from_disk(str(folder)))


def job_of(store: Store, pairs: Artifact, name: str = "job", stage: ModuleType = dpo):
    from expandr_core.runtime.job import Job

    inputs = {"llm": llm_of(store), "pairs": pairs}
    called = stage.__name__.rpartition(".")[2]
    spec = make_spec(called, flat(stage.OPTIONS, **DPO), inputs, device="cpu")
    folder = store.scratch / name
    for each in ("out", "checkpoints"):
        (folder / each).mkdir(parents=True)
    paths = {role: store.local(artifact) for role, artifact in inputs.items()}
    options = stage.OPTIONS(**spec.runtime["options"])
    return Job(spec, options, paths, folder / "out", folder / "checkpoints", store, no_progress)


def test_a_text_of_512_tokens_was_cut_and_a_shorter_one_had_ended(store, tmp_path, llm_folder):
    tokenizer = load_tokenizer(llm_folder)
    token = tokenizer.encode("7", add_special_tokens=False)
    assert len(token) == 1
    texts = {n: "7" * n for n in (511, 512)}
    assert {n: len(tokenizer.encode(t, add_special_tokens=False)) for n, t in texts.items()} == {
        511: 511, 512: 512
    }  # fmt: skip
    row = {"prompt": "why?", "chosen": texts[512], "rejected": texts[511]}
    [found] = rows_of(store, imported(store, write_array(tmp_path / "pairs.json", [row])))
    assert found["chosen_finish_reason"] == "length"
    assert found["rejected_finish_reason"] == "stop"


def test_what_nothing_can_be_learned_from_is_dropped_and_counted(store, tmp_path):
    same = {"prompt": "why?", "chosen": "text", "rejected": " text\n"}
    empty = {"prompt": "why?", "chosen": "text", "rejected": " "}
    no_turn = {"prompt": " ", "chosen": "text", "rejected": "hello"}
    rows = [*PAIRS, same, empty, no_turn, PAIRS[3]]
    made = imported(store, write_array(tmp_path / "pairs.json", rows))
    assert made.counts["pairs"] == 30
    assert {name: n for name, n in made.counts.items() if name.startswith("dropped")} == {
        "dropped/pairs/pairs.json/chosen equals rejected": 1,
        "dropped/pairs/pairs.json/empty text": 2,
        "dropped/pairs/pairs.json/repeated": 1,
    }
    with pytest.raises(DataError, match=r"no pair is left; dropped by reason: .*equals rejected"):
        imported(store, write_array(tmp_path / "none.json", [same]))


def test_pairs_are_held_out_by_file_name_or_by_the_share(store, tmp_path):
    folder = tmp_path / "release"
    write_array(folder / "dpo_dev.json", PAIRS[:5])
    write_array(folder / "dpo_train.json", PAIRS[5:])
    rows = rows_of(store, imported(store, folder, dpo_dev_share=0.5))
    assert [row["split"] for row in rows] == ["train"] * 25 + ["dev"] * 5
    assert [row["chosen_text"] for row in rows[25:]] == [p["chosen"]["value"] for p in PAIRS[:5]]

    rows = rows_of(store, imported(store, folder / "dpo_train.json", dpo_dev_share=0.5))
    splits = [row["split"] for row in rows]
    assert splits == sorted(splits, reverse=True) and 0 < splits.count("dev") < 25
    by_query = {(row["query_id"], row["split"]) for row in rows}
    assert len(by_query) == len({row["query_id"] for row in rows})  # a query is on one side


def test_the_key_depends_on_content_not_on_place(store, tmp_path):
    first = imported(store, write_array(tmp_path / "one" / "pairs.json", PAIRS))
    moved = imported(store, write_array(tmp_path / "two" / "pairs.json", PAIRS))
    changed = imported(store, write_array(tmp_path / "three" / "pairs.json", PAIRS[1:]))
    assert first == moved and changed.key != first.key


# What is trained on them


def own_pairs(store: Store) -> Artifact:
    """The pairs of the release as the stage `pairs` would write them, with ids of a collection."""
    rows = [
        {
            "query_id": f"q{n:02}",
            "query": each["conversations"][0]["value"].split(": ")[1].removesuffix("\nPassage:"),
            "split": "train",
            "margin": 1.0,
            **{f"{side}_text": each[side]["value"] for side in ("chosen", "rejected")},
            **{f"{side}_finish_reason": "stop" for side in ("chosen", "rejected")},
            **{f"{side}_reward": 1.0 for side in ("chosen", "rejected")},
        }
        for n, each in enumerate(PAIRS)
    ]
    return put(store, "pairs-1", {"pairs.parquet": pa.Table.from_pylist(rows, SCHEMA)})


def test_dpo_on_imported_pairs_equals_dpo_on_the_same_pairs_made_by_us(store, tmp_path):
    given, own = imported(store, write_array(tmp_path / "pairs.json", PAIRS)), own_pairs(store)
    tokens = [
        pairs_of(dpo.prepare(job_of(store, pairs, pairs.key)).rows / "train")
        for pairs in (given, own)
    ]
    assert tokens[0] == tokens[1] and len(tokens[0]) == 30
    adapters = [aligned(store, pairs) for pairs in (given, own)]
    assert adapters[0].key != adapters[1].key
    name = "adapter_model.safetensors"
    assert adapters[0].files[name] == adapters[1].files[name]
    assert adapters[0].counts == adapters[1].counts


def test_the_audit_says_what_is_known_of_imported_pairs(store, tmp_path):
    pairs = imported(store, write_array(tmp_path / "pairs.json", PAIRS))
    spec = make_spec("audit_pairs", audit_pairs.OPTIONS(), {"pairs": pairs})
    audit = run_stage(spec, store, no_progress)
    assert audit.counts["pairs"] == audit.counts["chosen_longer"] == 30
    assert "agreement" not in audit.counts
    report = (store.local(audit) / "pair_audit.md").read_text()
    assert report.startswith("30 imported pairs of 20 queries.")
    assert "Kendall" not in report and "margin" not in report
    assert "agreement" not in json.loads((store.local(audit) / "pair_audit.json").read_text())


# Killed


def test_an_import_killed_in_the_middle_is_made_again_to_the_same_bytes(store, tmp_path):
    """Kill -9 the import after its first pairs; nothing is left that looks like an artifact."""
    location = write_array(tmp_path / "pairs.json", PAIRS)
    settings = import_pairs.OPTIONS(prompt="q2d", dpo_dev_share=0.0, location=str(location))
    inputs, sources = {"llm": llm_of(store)}, import_pairs.source_digests(settings)
    spec = make_spec("import_pairs", settings, inputs, sources=sources)

    def kill(done: int, total: int, unit: str) -> None:
        if done == 7:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            run_stage(spec, store, kill)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    assert not store.keys("import_pairs")
    made = run_stage(spec, store, no_progress)
    whole = imported(
        store, write_array(tmp_path / "elsewhere" / "pairs.json", PAIRS), bad_rows="skip"
    )
    assert made.key != whole.key and made.digest == whole.digest
