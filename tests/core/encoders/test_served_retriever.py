"""A trained retriever is, wherever it is opened, the one that was measured; one of two encoders too."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import retriever_world as world
from flat_options import flat
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from expandr_core.encoders.check import check_retriever
from expandr_core.encoders.encode import Encoder
from expandr_core.errors import DataError
from expandr_core.options.generation import PromptOptions, SamplingOptions
from expandr_core.options.retriever import EncodingOptions, FusionOptions
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.model_folders import check_folder
from expandr_core.runtime.model_source import model_source
from expandr_core.runtime.runner import make_spec, run_stage
from expandr_core.stages import expand, train_retriever
from expandr_core.stages.import_model import ImportOptions
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store

ENCODING = EncodingOptions(max_tokens=8, similarity="dot")
EXAMPLES = [world.example(thing, [world.THINGS[0]]) for thing in world.TRAINED[1:]]
LONG = " ".join(world.VOCABULARY[:14])
TEXTS = [LONG, "lay1 tech1", "tech5 lay0 lay7"]
SETTINGS = {
    "learning_rate": 0.01,
    "epochs": 2,
    "batch_size": 8,
    "hard_negatives": 1,
    "encoding": ENCODING,
    "contrastive_temperature": 1.0,
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def trained(store: Store, retriever: Artifact, **options: Any) -> Path:
    settings = flat(train_retriever.OPTIONS, **(SETTINGS | options))
    inputs = {"retriever": retriever, "expansions": expansions(store)}
    inputs["examples"] = world.put_examples(store, "prepare-examples", EXAMPLES)
    spec = make_spec("train_retriever", settings, inputs, device="cpu")
    return store.local(run_stage(spec, store, no_progress))


def expansions(store: Store) -> Artifact:
    asked = expand.OPTIONS(
        prompt=PromptOptions(max_tokens=99),
        sampling=SamplingOptions(sampling_temperatures=(0.7,), top_p=0.8, max_new_tokens=9),
        queries_per_shard=5,
    )
    rows = [(f"q{i}{j}", 0, f"tech{i}") for i, j in world.TRAINED]
    made = world.put_expansions(store, "expand-all", rows)
    folder = store.scratch / "put" / "expand-asked"
    folder.mkdir(parents=True)
    manifest = {"counts": {}, "options": asked.model_dump(mode="json")}
    return store.commit(world.full("expand-asked"), folder, store.shards(made), manifest)


def with_papers(folder: Path) -> Path:
    for name in ("README.md", "LICENSE", "NOTICE.txt"):
        (folder / name).write_text(f"{name} of the base")
    return folder


def with_prompts(save: Callable[[Path], Path]) -> Callable[[Path], Path]:
    def save_both(folder: Path) -> Path:
        path = save(folder) / "config_sentence_transformers.json"
        prompts = {"query": "lay0 ", "document": "tech0 "}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"prompts": prompts}))
        return folder

    return save_both


@pytest.mark.parametrize("save", [world.save_static, world.save_bert])
def test_the_folder_alone_gives_the_vectors_that_were_measured(save, store, tmp_path):
    start = with_papers(with_prompts(save)(tmp_path / "start"))
    folder = trained(store, world.put(store, "import-model", start))
    library = SentenceTransformer(str(folder), device="cpu")
    measured = Encoder(folder, "cpu", ENCODING)
    assert library.similarity_fn_name == "dot" and not measured.normalize
    np.testing.assert_allclose(
        library.encode_query(TEXTS), measured.encode_queries(TEXTS), atol=1e-6
    )
    np.testing.assert_allclose(
        library.encode_document(TEXTS), measured.encode_passages(TEXTS), atol=1e-6
    )
    for name in ("README.md", "LICENSE", "NOTICE.txt"):
        assert (folder / name).read_text() == f"{name} of the base"
    fresh = tmp_path / "fresh"
    fresh.touch()
    modes = {path.stat().st_mode for path in folder.rglob("*") if path.is_file()}
    assert modes == {fresh.stat().st_mode}


def test_its_configuration_is_the_one_that_version_5_reads(store, tmp_path):
    folder = trained(store, world.put(store, "import-model", world.save_bert(tmp_path / "start")))
    types = [module["type"] for module in json.loads((folder / "modules.json").read_text())]
    assert types == [
        "sentence_transformers.models.Transformer",
        "sentence_transformers.models.Pooling",
    ]
    said = json.loads((folder / "sentence_bert_config.json").read_text())
    assert said == {"max_seq_length": 8, "do_lower_case": False}
    said = json.loads((folder / "1_Pooling" / "config.json").read_text())
    assert said["word_embedding_dimension"] == 16 and said["pooling_mode_mean_tokens"]
    assert "pooling_mode" not in said and "embedding_dimension" not in said


def test_a_file_beside_it_says_how_queries_are_expanded_and_fused(store, tmp_path):
    start = world.put(store, "import-model", world.save_static(tmp_path / "start"))
    use = json.loads((trained(store, start) / "expansion.json").read_text())
    assert use["expansion"]["prompt"] == "q2d" and "{query}" in use["expansion"]["text"]
    assert use["expansion"]["sampling"] == {
        "sampling_temperatures": [0.7],
        "top_p": 0.8,
        "max_new_tokens": 9,
    }
    fusion = {name: use["fusion"][name] for name in ("expansion_weight", "normalize")}
    assert fusion == {"expansion_weight": 0.5, "normalize": False}
    assert use["encoding"]["max_tokens"] == 8
    alone = json.loads(
        (
            trained(store, start, fusion=FusionOptions(expansion_weight=0)) / "expansion.json"
        ).read_text()
    )
    assert alone["expansion"] is None and alone["fusion"]["expansion_weight"] == 0


# Two encoders


def save_router(folder: Path, document: str = "document") -> Path:
    """Save a BERT for queries that takes 10 tokens, and one with a dense layer for passages."""
    world.save_bert(folder.with_name("one"))
    bert = folder.with_name("one-bert")
    queries, passages = Transformer(str(bert)), Transformer(str(bert))
    queries.max_seq_length = 10
    router = Router(
        {
            "query": [queries, Pooling(16, "cls")],
            document: [passages, Pooling(16, "mean"), Dense(16, 16)],
        },
        default_route=document,
    )
    model = SentenceTransformer(modules=[router], device="cpu", similarity_fn_name="cosine")
    model.save(str(folder), create_model_card=False)
    return folder


def imported(store: Store, folder: Path) -> Artifact:
    source, sources = model_source(str(folder))
    options = ImportOptions(kind="retriever", folder=str(source))
    return run_stage(make_spec("import_model", options, sources=sources), store, no_progress)


def test_a_router_encodes_queries_and_passages_by_separate_encoders(store, tmp_path):
    folder = store.local(imported(store, save_router(tmp_path / "router")))
    library = SentenceTransformer(str(folder), device="cpu")
    encoder = Encoder(folder, "cpu", EncodingOptions())
    expected = library.encode_query(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(encoder.encode_queries(TEXTS), expected, atol=1e-6)
    expected = library.encode_document(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(encoder.encode_passages(TEXTS), expected, atol=1e-6)
    limits = [route[0].max_seq_length for route in encoder.model[0].sub_modules.values()]
    assert limits == [10, 32]


def test_both_encoders_of_a_router_are_trained_and_saved(store, tmp_path):
    start = imported(store, save_router(tmp_path / "router"))
    encoding = EncodingOptions(max_tokens=16)
    folder = trained(store, start, encoding=encoding)
    library = SentenceTransformer(str(folder), device="cpu")
    measured = Encoder(folder, "cpu", encoding)
    for ours, theirs in (
        (measured.encode_queries, library.encode_query),
        (measured.encode_passages, library.encode_document),
    ):
        expected = theirs(TEXTS, normalize_embeddings=True)
        np.testing.assert_allclose(ours(TEXTS), expected, atol=1e-6)
    weights = [path.relative_to(folder) for path in folder.rglob("*.safetensors")]
    assert len(weights) == 3
    for name in weights:
        before, after = (load_file(each / name) for each in (store.local(start), folder))
        assert any(not before[key].equal(after[key]) for key in before), name
    check_folder(folder)
    check_retriever(Path(shutil.copytree(folder, tmp_path / "copy")))


def test_a_router_without_a_route_for_passages_is_refused_by_name(store, tmp_path):
    folder = save_router(tmp_path / "router", document="answer")
    with pytest.raises(DataError, match=r"(?s)'document'.*answer"):
        imported(store, folder)


def test_code_named_by_a_router_is_not_run(store, tmp_path):
    folder = save_router(tmp_path / "router")
    path = folder / "router_config.json"
    path.write_text(path.read_text().replace("sentence_transformers.base", "somewhere.base"))
    with pytest.raises(DataError, match=r"module type 'somewhere.*not run"):
        imported(store, folder)
