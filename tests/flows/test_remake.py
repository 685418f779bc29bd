"""An artifact is made again from its manifest alone, in an empty store, with the same digest."""

import json
import os
import pkgutil
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny_loop
from released import PAIRS, TRIPLES, write_array, write_lines
from test_evaluate_suite import write_dataset

import expandr_core.stages
from expandr_core.errors import DataError
from expandr_core.evaluation.comparison import MeasuredDataset, System
from expandr_core.lineage.remake import remake, spec_of
from expandr_core.options.base import Options
from expandr_core.options.generation import ChatOptions
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.runner import make_spec, run_stage
from expandr_core.stages import (
    ablation,
    audit,
    collection_texts,
    compare,
    dataset,
    distil,
    evaluate_runs,
    example_passages,
    gate,
    import_adapter,
    import_expansions,
    import_model,
    import_pairs,
    import_queries,
    kto,
    prepare,
    sample,
    sft,
)
from expandr_core.stages.ablation import TableRow
from expandr_core.store.artifacts import Artifact
from expandr_core.store.manifests import MANIFEST
from expandr_core.store.store import Store

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


class Again(NamedTuple):
    """A store with the manifests of the tiny loop and nothing else, and one to make artifacts in."""

    manifests: Store
    made: Store


@pytest.fixture(scope="module")
def again(first, tmp_path_factory) -> Again:
    folder = tmp_path_factory.mktemp("again")
    stores = Again(Store(str(folder / "manifests")), Store(str(folder / "made")))
    _copy_manifests(Store(first.record.store, folder / "scratch"), stores.manifests)
    return stores


def _copy_manifests(store: Store, target: Store) -> None:
    for key in store.keys(""):
        Path(target.folder(key)).mkdir(parents=True, exist_ok=True)
        Path(target.folder(key), MANIFEST).write_text(_text(store, key))


def one_of_each(first) -> dict[str, Artifact]:
    return {step.artifact.stage: step.artifact for step in first.record.steps}


def test_every_stage_of_the_loop_makes_the_same_bytes_from_its_manifest(first, again):
    for artifact in one_of_each(first).values():
        found = remake(again.manifests, artifact.key, again.made, dict(os.environ))
        assert found.digest == artifact.digest


def test_so_does_every_other_stage(first, again, store, tmp_path):
    opened = Store(str(store))
    others = make_others(first, opened, tmp_path)
    every = {module.name for module in pkgutil.iter_modules(expandr_core.stages.__path__)}
    assert one_of_each(first).keys() | {artifact.stage for artifact in others} == every
    _copy_manifests(opened, again.manifests)
    for artifact in others:
        found = remake(again.manifests, artifact.key, again.made, dict(os.environ))
        assert found.digest == artifact.digest


def make_others(first, store: Store, folder: Path) -> list[Artifact]:
    """Make an artifact of each stage that the tiny loop has none of."""
    options, made = tiny_loop.OPTIONS, []

    def make(stage: str, chosen: Options, inputs: dict[str, Artifact], **more: Any) -> Artifact:
        spec = make_spec(stage, chosen, inputs, seed=1, device="cpu", **more)
        made.append(run_stage(spec, store, no_progress))
        return made[-1]

    llm, dpo, pairs = (first.artifact(*id_) for id_ in (("tiny_llm",), ("dpo", 1), ("pairs", 1)))
    chat = ChatOptions(**store.manifest(dpo.key)["options"]["chat"])
    make("sft", sft.OPTIONS.of(options, chat), {"llm": llm, "pairs": pairs})
    inputs = {"llm": llm, "pairs": pairs, "rewards": first.artifact("reward", 1)}
    make("kto", kto.OPTIONS.of(options, chat), inputs)

    path, files = str(store.local(llm)), llm.files
    make("import_model", import_model.OPTIONS(kind="llm", folder=path), {}, sources=files)
    path, files = str(store.local(dpo)), {name: dpo.files[name] for name in ADAPTER_FILES}
    make("import_adapter", import_adapter.OPTIONS(folder=path), {"llm": llm}, sources=files)

    data = options.data.model_copy(
        update={"pairs": str(write_array(folder / "pairs.json", PAIRS)), "collection": "",
                "triples": str(write_lines(folder / "triples.jsonl", TRIPLES)), "dev_share": 0.1}
    )  # fmt: skip
    chosen = import_pairs.OPTIONS.of(options.model_copy(update={"data": data}))
    make("import_pairs", chosen, {"llm": llm}, sources=import_pairs.source_digests(chosen))
    rows = make("prepare", data, {}, sources=prepare.source_digests(data))
    inputs = {"pseudo_docs": rows.at("pseudo_docs.parquet")}
    make("import_expansions", import_expansions.OPTIONS(samples=2), inputs)
    inputs = {role: rows.at(f"{role}.parquet") for role in ("preference", "retriever")}
    passages = make("example_passages", example_passages.OPTIONS(), inputs).at("corpus.parquet")
    make("collection_texts", collection_texts.OPTIONS(), {"corpus": passages})
    make("sample", sample.OPTIONS(size=5), {"table": passages})

    log = write_lines(folder / "log.jsonl", [{"text": "What does it eat?"}])
    chosen = import_queries.OPTIONS(location=str(log))
    make("import_queries", chosen, {}, sources=import_queries.source_digests(chosen))
    inputs = {"retriever": first.artifact("tiny_retriever")}
    inputs |= {"examples": first.artifact("prepare").at("retriever.parquet")}
    inputs |= {"expansions": first.artifact("expand", 1, "training")}
    make("distil", distil.OPTIONS.of(options), inputs)

    chosen = dataset.OPTIONS(location=str(write_dataset(folder / "birds", 0)), split="test")
    make("dataset", chosen, {}, sources=dataset.source_digests(chosen))
    files = first.artifact("prepare")
    inputs = {role: files.at(f"test_{role}.parquet") for role in ("queries", "qrels")}
    queries = inputs["queries"]
    inputs |= {"corpus": files.at("corpus.parquet"), "training-0": files.at("retriever.parquet")}
    inputs |= {"before": measured(first, "query"), "after-0": measured(first, "untrained")}
    searched = store.manifest(inputs["after-0"].key)["inputs"]
    searched = {role: Artifact(**each) for role, each in searched.items()}
    make("audit", audit.OPTIONS(), inputs | {"expansions-0": searched["expansions"]})
    learned = make("gate", gate.OPTIONS.of(options, "ignore"), searched)
    runs = {"alone": inputs["before"], "expanded": inputs["after-0"], "gate": learned}
    runs |= {role: inputs[role] for role in ("queries", "qrels")}
    encoding = options.retriever.encoding
    chosen = evaluate_runs.OPTIONS(how="gate", encoding=encoding, depth=options.evaluate.depth)
    make("evaluate_runs", chosen, runs)
    names = {"base": "round-1", "base_plain": "aligned-1", "query": "query"}
    chosen = compare.OPTIONS(
        systems=tuple(System(name=name, title=name) for name in names),
        datasets=(MeasuredDataset(name="test", subsets=("seed-1",)),),
        contrasts=(),
        significance=options.evaluate.significance,
        subsets_are="seeds",
    )
    inputs = {f"measured/test/seed-1/{k}/0": measured(first, v) for k, v in names.items()}
    compared = make("compare", chosen, inputs | {"queries/test/seed-1": queries})
    row = TableRow(name="base", title="base", plain="base_plain")
    make("ablation", ablation.OPTIONS(rows=(row,), query="query"), {"comparison": compared})
    return made


def measured(first, system: str) -> Artifact:
    steps = first.record.steps
    return next(step.artifact for step in steps if step.id.name == f"test/{system}/0")


def test_a_shard_is_made_by_its_stage(first):
    store = Store(first.record.store)
    [shard, *_] = store.keys("expand_shard")
    with pytest.raises(DataError, match="make the artifact of 'expand' again that it is a part of"):
        remake(store, shard, store)


def test_a_file_that_has_changed_is_named(tmp_path):
    folder = write_dataset(tmp_path / "birds", 0)
    chosen = dataset.OPTIONS(location=str(folder), split="test")
    spec = make_spec("dataset", chosen, {}, sources=dataset.source_digests(chosen))
    store, empty = Store(str(tmp_path / "store")), Store(str(tmp_path / "empty"))
    key = run_stage(spec, store, no_progress).key
    (folder / "corpus.jsonl").write_text('{"_id": "d0", "title": "", "text": "another"}\n')
    with pytest.raises(DataError, match=rf"{key} cannot be made again: (.|\n)*corpus.jsonl"):
        remake(store, key, empty)
    shutil.rmtree(folder)
    with pytest.raises(DataError, match=rf"{key} cannot be made again: (.|\n)*corpus.jsonl"):
        remake(store, key, empty)


def _text(store: Store, key: str) -> str:
    return Path(store.folder(key), MANIFEST).read_text()


def test_a_manifest_of_another_version_is_refused_with_its_commit(first):
    store = Store(first.record.store)
    manifest = json.loads(_text(store, first.artifact("merge", 1).key))
    assert spec_of(manifest).key == manifest["key"]
    with pytest.raises(DataError, match=r"version 99 of the stage 'merge' then, \d+ now"):
        spec_of(manifest | {"version": 99, "seed": 9})
    with pytest.raises(DataError, match="no stage 'merge' with these options"):
        spec_of(manifest | {"options": {"another": 1}})
