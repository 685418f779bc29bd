"""AnchorDR and a Contriever go through every stage that a retriever is in."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import retriever_world as world
from anchordr_world import CONFIG, make_anchordr, save_published, train_pieces
from evaluation_world import columns, make, put, table
from flat_options import flat
from safetensors.torch import load_file

from expandr_core.encoders.encode import Encoder
from expandr_core.options.retriever import EncodingOptions
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.model_source import model_source
from expandr_core.runtime.runner import make_spec, run_stage
from expandr_core.stages import encode, evaluate, train_retriever
from expandr_core.stages.import_model import ImportOptions
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store

ENCODING = EncodingOptions(max_tokens=32)
EXAMPLES = [world.example(thing) for thing in world.TRAINED]
TRAINING: dict[str, Any] = {
    "epochs": 12,
    "batch_size": 7,
    "warmup_share": 0.1,
    "hard_negatives": 0,
    "expansions_per_query": 1,
    "encoding": ENCODING,
    "contrastive_temperature": 1.0,
}
NAMES = {world.passage_id(thing): world.passage(thing) for thing in world.THINGS}


def anchordr(folder: Path) -> Path:
    still = replace(CONFIG, dropout_rate=0.0)  # a width of 16 does not bear any
    return save_published(folder, make_anchordr(train_pieces(folder.with_name("pieces")), still))


def contriever(folder: Path) -> Path:
    world.save_bert(folder)
    return folder.with_name(folder.name + "-bert")


def import_retriever(store: Store, folder: Path, **options: Any) -> Artifact:
    source, sources = model_source(str(folder))
    resolved = flat(ImportOptions, kind="retriever", folder=str(source), **options)
    return run_stage(make_spec("import_model", resolved, sources=sources), store, no_progress)


def put_data(store: Store) -> Artifact:
    queries = [(f"q{i}{j}", world.query((i, j)), "") for i, j in world.TRAINED]
    tables = {
        "corpus.parquet": table(
            ["passage_id", "title", "text"], [(name, "", text) for name, text in NAMES.items()]
        ),
        "queries.parquet": table(["query_id", "query", "cluster"], queries),
        "qrels.parquet": table(
            ["query_id", "passage_id", "relevance"],
            [(f"q{i}{j}", f"p{i}{j}", 1) for i, j in world.TRAINED],
        ),
    }
    return put(store, "data-1", tables)


def without_effect(name: str) -> bool:
    """One token attends to itself, whatever its query and key are."""
    parts = name.split(".")
    return parts[0] == "decoder" and parts[-3] == "SelfAttention" and parts[-2] in ("q", "k")


@pytest.mark.parametrize(
    ("save", "convention", "rate"), [(anchordr, "model", 0.003), (contriever, "contriever", 0.005)]
)
def test_it_is_imported_searched_with_trained_and_searched_with_again(
    save: Callable[[Path], Path], convention: str, rate: float, tmp_path: Path
):
    store = Store(str(tmp_path / "store"))
    start = import_retriever(store, save(tmp_path / "original"), convention=convention)
    data = put_data(store)
    expansions = world.put_expansions(
        store, "expand-1", [(f"q{i}{j}", 0, f"tech{i}") for i, j in world.TRAINED]
    )

    def searched(retriever: Artifact) -> tuple[float, np.ndarray]:
        inputs = {"retriever": retriever, "corpus": data.at("corpus.parquet")}
        exact = flat(encode.OPTIONS, encoding=ENCODING, vector_type="float32")
        embeddings, _ = make(store, "encode", exact, inputs)
        options = flat(evaluate.OPTIONS, encoding=ENCODING, expansion_weight=0.5, depth=100)
        inputs = {name: data.at(f"{name}.parquet") for name in ("queries", "qrels")}
        inputs |= {"retriever": retriever, "embeddings": embeddings, "expansions": expansions}
        _, folder = make(store, "evaluate", options, inputs)
        measured = columns(folder / "per_query.parquet")
        [part] = store.shards(embeddings)
        return float(np.mean(measured["ndcg_at_10"])), np.load(store.local(part) / "vectors.npy")

    before, vectors = searched(start)
    encoder = Encoder(store.local(start), "cpu", ENCODING)
    assert not encoder.normalize
    np.testing.assert_array_equal(vectors, encoder.encode_passages(list(NAMES.values())))

    examples = world.put_examples(store, "prepare-1", EXAMPLES)
    inputs = {"retriever": start, "examples": examples, "expansions": expansions}
    options = flat(train_retriever.OPTIONS, learning_rate=rate, **TRAINING)
    trained, folder = make(store, "train_retriever", options, inputs)
    losses = pq.read_table(folder / "training_log.parquet").column("loss").to_pylist()
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])

    after, moved = searched(trained)
    assert after > before + 0.1
    assert np.abs(moved - vectors).max() > 0.1
    old, new = (load_file(store.local(each) / "model.safetensors") for each in (start, trained))
    assert old.keys() == new.keys()
    kept = {name for name in old if np.array_equal(old[name].numpy(), new[name].numpy())}
    assert {name for name in kept if "layer" in name and not without_effect(name)} == set()


def test_training_anchordr_goes_on_after_an_interruption_to_the_same_bytes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    saved = save_published(tmp_path / "a", make_anchordr(train_pieces(tmp_path / "pieces")))

    def stop_at_8(done: int, total: int, unit: str) -> None:
        if (done, unit) == (8, "steps"):
            raise KeyboardInterrupt

    settings: dict[str, Any] = TRAINING | {"epochs": 4, "checkpoint_steps": 3}
    options = flat(train_retriever.OPTIONS, learning_rate=0.003, **settings)
    made = []
    for name in ("straight", "interrupted"):
        store = Store(str(tmp_path / name))
        inputs = {"retriever": import_retriever(store, saved)}
        inputs["examples"] = world.put_examples(store, "prepare-1", EXAMPLES)
        spec = make_spec("train_retriever", options, inputs, device="cpu")
        if name == "interrupted":
            with pytest.raises(KeyboardInterrupt):
                run_stage(spec, store, stop_at_8)
            caplog.set_level("INFO", "expandr_core")  # which `search` quiets
        made.append(run_stage(spec, store, no_progress))
    assert "going on from checkpoint-6" in caplog.text
    assert made[0].files == made[1].files
