"""The stage expand: rows and counts, shards that stay, and a kill that costs one shard at most."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from evaluation_world import put
from store_keys import full

from expandr_core.errors import DataError
from expandr_core.generation import engine
from expandr_core.generation.engine import Codec, Completion
from expandr_core.generation.prompts import fit_prompt, render_prompt
from expandr_core.options.generation import (
    ChatOptions,
    Prompt,
    PromptOptions,
    SamplingOptions,
    TransformersOptions,
)
from expandr_core.options.loop import JointLoopOptions
from expandr_core.records import EXPANSIONS
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.runner import count_shards, make_spec, run_stage, share_stage
from expandr_core.stages import expand
from expandr_core.store.artifacts import Artifact, StageSpec
from expandr_core.store.store import MANIFEST, Store

PROMPT = PromptOptions(max_tokens=300)
SAMPLING = SamplingOptions(
    samples=4, sampling_temperatures=(0.8, 1.2), top_p=0.95, max_new_tokens=12
)
QUERIES = {f"q{number:02}": f"why is thing {number} grey?" for number in range(16)}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def put_llm(store: Store, llm_folder: Path) -> Artifact:
    found = store.lookup(full("tiny_llm-1"))
    folder = store.scratch / "llm"
    return found or store.commit(
        full("tiny_llm-1"), shutil.copytree(llm_folder, folder), [], {"counts": {}}
    )


def put_queries(store: Store, queries: dict[str, str], positives: dict[str, list[str]] = {}):  # noqa: B006
    """Write a row for each positive of each query, in the given order."""
    rows = [
        {"query_id": id_, "query": query, "positive_id": f"p{place}", "positive": positive}
        for id_, query in queries.items()
        for place, positive in enumerate(positives.get(id_, ["text of a passage"]))
    ]
    key = f"prepare-{len(store.keys('prepare'))}"
    return put(store, key, {"preference.parquet": pa.Table.from_pylist(rows)}).at(
        "preference.parquet"
    )


def prompt(name: Prompt) -> PromptOptions:
    return PROMPT.model_copy(update={"name": name})


def specified(
    store: Store, llm_folder: Path, queries: Artifact, seed: int = 0, **options
) -> StageSpec:
    settings = {
        "prompt": PROMPT,
        "sampling": SAMPLING,
        "queries_per_shard": 4,
    }
    inputs = {"llm": put_llm(store, llm_folder), "queries": queries}
    return make_spec(
        "expand", expand.OPTIONS(**(settings | options)), inputs, seed=seed, device="cpu"
    )


@pytest.fixture
def expanded(store, llm_folder):
    """Return a function that expands queries; it returns the artifact and all rows."""

    def run(queries: dict[str, str], positives: dict[str, list[str]] = {}, **options):  # noqa: B006
        spec = specified(store, llm_folder, put_queries(store, queries, positives), **options)
        made = run_stage(spec, store, no_progress)
        return made, rows_of(store, made)

    return run


def rows_of(store: Store, artifact: Artifact) -> list[dict]:
    parts = [store.local(part) / "expansions.parquet" for part in store.shards(artifact)]
    return [row for path in parts for row in pq.read_table(path).to_pylist()]


def by_id(rows: list[dict]) -> dict[tuple[str, int], str]:
    return {(row["query_id"], row["sample"]): row["text"] for row in rows}


# Rows


def test_every_query_has_its_samples_in_order(store, expanded):
    made, rows = expanded(QUERIES)
    for part in store.shards(made):
        table = pq.read_table(store.local(part) / "expansions.parquet")
        assert table.schema.equals(EXPANSIONS)
        order = [(row["query_id"], row["sample"]) for row in table.to_pylist()]
        assert order == sorted(order)
    assert sorted(by_id(rows)) == [(id_, sample) for id_ in QUERIES for sample in range(4)]
    temperatures = [round(row["sampling_temperature"], 3) for row in rows[:4]]
    assert temperatures == [0.8, 0.8, 1.2, 1.2]
    assert {row["finish_reason"] for row in rows} <= {"stop", "length"}
    assert made.counts["texts"] == len(rows) == 64
    assert made.counts["queries"] == 16
    assert made.counts["tokens"] == sum(row["tokens"] for row in rows)
    assert made.counts["truncated"] == sum(row["finish_reason"] == "length" for row in rows)
    assert len({row["text"] for row in rows}) > 60


def test_texts_in_bfloat16_are_counted(store, expanded):
    made, _ = expanded(QUERIES, precision="bfloat16")
    assert made.counts["bfloat16_texts"] == made.counts["texts"]
    made, _ = expanded(QUERIES)
    assert "bfloat16_texts" not in made.counts


@pytest.mark.parametrize(
    "asked",
    [
        *(prompt(name) for name in get_args(Prompt)),
        PromptOptions(text="On {query}:", max_tokens=300),
    ],
    ids=lambda asked: asked.name,
)
def test_each_prompt_is_asked_and_its_lead_ins_are_removed(expanded, monkeypatch, asked):
    """What the model writes follows the very prompt, and loses the lead-in of its kind."""
    lead_in = {
        "q2d": "Here is a passage:",
        "q2a": "Answer:",
        "q2q": "Output:",
        "q2e": "Here are the keywords:",
        "q2c": "Here is the rationale:",
        "own": "Here is what I know:",
    }[asked.name]
    seen = []
    complete = Codec.completion

    def led_in(codec: Codec, ids: list[int]) -> Completion:
        found = complete(codec, ids)
        return replace(found, text=f"{lead_in} text {found.text}")

    def fitted(*arguments):
        seen.append(fit_prompt(*arguments))
        return seen[-1]

    monkeypatch.setattr(Codec, "completion", led_in)
    monkeypatch.setattr(engine, "fit_prompt", fitted)
    _, rows = expanded({"q1": "why is dust grey?"}, prompt=asked)
    passage = "text of a passage" if asked.name == "q2a" else ""
    assert [each.turn for each in seen] == [render_prompt(asked, "why is dust grey?", passage)]
    assert all(row["text"].startswith("text") for row in rows) and len(rows) == 4


def test_an_answer_that_is_to_be_an_expansion_sees_no_positive(store, llm_folder):
    """Nor could it: the queries that are searched for have none."""
    loop = JointLoopOptions.model_validate({"expand": {"prompt": {"name": "q2a"}}})
    blind, seeing = (
        expand.OPTIONS.of(loop, SAMPLING, name, ChatOptions()) for name in (None, "q2a")
    )
    assert (blind.hides_positive, seeing.hides_positive) == (True, False)
    assert seeing == expand.OPTIONS.of(JointLoopOptions(), SAMPLING, "q2a", ChatOptions())
    with_positive = put_queries(store, QUERIES, {id_: [f"text {id_}"] for id_ in QUERIES})
    rows = pa.Table.from_pylist([{"query_id": id_, "query": text} for id_, text in QUERIES.items()])
    without = put(store, "prepare-test", {"test.parquet": rows}).at("test.parquet")
    chosen = {"prompt": prompt("q2a"), "sampling": SAMPLING}
    made = [
        rows_of(
            store,
            run_stage(
                specified(store, llm_folder, queries, **chosen, hides_positive=hidden),
                store,
                no_progress,
            ),
        )
        for queries, hidden in ((without, True), (with_positive, True), (with_positive, False))
    ]
    assert made[0] == made[1] != made[2]


def test_a_query_with_several_positives_is_expanded_once(expanded):
    one, _ = expanded(QUERIES)
    several, rows = expanded(QUERIES, {id_: ["one", "two"] for id_ in QUERIES})
    assert len(rows) == 64
    assert several.counts["queries"] == 16 == one.counts["queries"]


def test_the_order_of_the_queries_changes_nothing(expanded):
    made, _ = expanded(QUERIES)
    again, _ = expanded(dict(reversed(QUERIES.items())))
    assert again.key != made.key
    assert again.digest == made.digest


def test_texts_do_not_depend_on_how_the_queries_are_cut(expanded):
    _, rows = expanded(QUERIES)
    _, cut = expanded(QUERIES, queries_per_shard=16)
    _, batched = expanded(QUERIES, settings=TransformersOptions(batch_size=8))
    assert by_id(cut) == by_id(rows) == by_id(batched)


def test_another_seed_and_another_prompt_write_other_texts(expanded):
    _, rows = expanded(QUERIES)
    for other in (expanded(QUERIES, seed=1), expanded(QUERIES, prompt=prompt("q2e"))):
        same = [text == by_id(rows)[id_] for id_, text in by_id(other[1]).items()]
        assert sum(same) < 4


def test_only_the_answer_reads_the_passage(expanded):
    passages = {id_: ["another passage altogether"] for id_ in QUERIES}
    for name in ("q2d", "q2a"):
        plain, other = (
            by_id(expanded(QUERIES, given, prompt=prompt(name))[1]) for given in ({}, passages)
        )
        assert (plain == other) == (name == "q2d")


def test_a_prompt_without_room_is_a_data_error(expanded):
    with pytest.raises(DataError, match=r"raise expand.prompt.max_tokens"):
        expanded(QUERIES, prompt=PROMPT.model_copy(update={"max_tokens": 10}))


# Shards


def test_a_changed_query_changes_its_own_shard_only(store, expanded):
    made, rows = expanded(QUERIES)
    before = {part.key: part for part in store.shards(made)}
    assert len(before) >= 3
    for changed in (
        QUERIES | {"q07": "what else?"},
        {k: QUERIES[k] for k in QUERIES if k != "q07"},
    ):
        other, others_rows = expanded(changed)
        after = {part.key: part for part in store.shards(other)}
        assert len(after.keys() - before.keys()) == 1
        assert len(before.keys() - after.keys()) == 1
        unchanged = {id_: text for id_, text in by_id(rows).items() if id_[0] != "q07"}
        assert unchanged.items() <= by_id(others_rows).items()


def test_existing_shards_are_not_written_again(store, expanded):
    made, _ = expanded(QUERIES)
    times = written(store)
    shutil.rmtree(Path(store.root, "artifacts", made.key))
    lost = store.shards(expanded(QUERIES)[0])[1].key
    assert {key: times[key] for key in times if "_shard-" in key}.items() <= written(store).items()

    shutil.rmtree(Path(store.root, "artifacts", lost))
    again, _ = expanded(QUERIES)
    assert again.digest == made.digest
    after = written(store)
    assert [key for key in times if "_shard-" in key and after[key] != times[key]] == [lost]


def written(store: Store) -> dict[str, int]:
    """Tell when each artifact was written."""
    manifests = Path(store.root, "artifacts").glob(f"*/{MANIFEST}")
    return {path.parent.name: path.stat().st_mtime_ns for path in manifests}


def test_a_killed_stage_writes_one_shard_again_at_most(llm_folder, tmp_path):
    """Kill -9 the program once its first shard is there, and start it again."""
    queries = {f"q{number:02}": f"why is thing {number} grey?" for number in range(24)}
    sampling = SAMPLING.model_copy(update={"max_new_tokens": 60})
    stores = [Store(str(tmp_path / name)) for name in ("killed", "whole")]
    specs = [
        specified(
            store, llm_folder, put_queries(store, queries), sampling=sampling, queries_per_shard=4
        )
        for store in stores
    ]
    path = tmp_path / "spec.json"
    path.write_text(specs[0].model_dump_json())
    command = [sys.executable, "-m", "expandr_core.runtime.runner", str(path), stores[0].url]
    child = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not stores[0].keys("expand_shard"):
        assert child.poll() is None and time.monotonic() < deadline, "no shard came"
        time.sleep(0.005)
    os.killpg(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert stores[0].lookup(specs[0].key) is None
    before = {key: time_ for key, time_ in written(stores[0]).items() if "_shard" in key}

    assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0
    resumed = stores[0].lookup(specs[0].key)
    assert resumed is not None
    whole = run_stage(specs[1], stores[1], no_progress)
    assert resumed.digest == whole.digest
    assert 0 < len(before) < len(stores[0].shards(resumed))
    assert before.items() <= written(stores[0]).items()  # what was there was not written again
    assert not list((stores[0].scratch / "work").glob("expand*"))


def test_the_first_shards_are_the_same_with_and_without_a_maximum(store, llm_folder, expanded):
    made, _ = expanded(QUERIES)
    shards = store.shards(made)
    queries = store.manifest(made.key)["inputs"]["queries"]
    spec = specified(store, llm_folder, Artifact(**queries))
    spec = spec.model_copy(update={"max_shards": 2})
    assert count_shards(spec, store) == 2
    times = written(store)
    limited = run_stage(spec, store, no_progress)
    assert store.shards(limited) == shards[:2]
    assert {key: time_ for key, time_ in written(store).items() if key != limited.key} == times
    assert limited.counts["queries"] + limited.counts["left_out/queries"] == 16
    assert limited.counts["texts"] + limited.counts["left_out/texts"] == 64
    assert limited.counts["left_out/texts"] == sum(part.counts["texts"] for part in shards[2:])


@pytest.mark.parametrize(
    ("make", "max_shards"), [(run_stage, 0), (share_stage, 0), (share_stage, 2)]
)
def test_progress_ends_with_all_texts_and_never_beyond(store, llm_folder, make, max_shards):
    queries = put_queries(store, QUERIES, {"q00": ["one passage", "another", "a third"]})
    spec = specified(store, llm_folder, queries).model_copy(update={"max_shards": max_shards})
    reports: list[tuple[int, int]] = []
    make(spec, store, lambda done, total, unit: reports.append((done, total)))
    written = [store.manifest(key)["counts"]["texts"] for key in store.keys("expand_shard")]
    assert len({total for _, total in reports}) == 1
    assert max(reports) == reports[-1] == (sum(written), sum(written))
