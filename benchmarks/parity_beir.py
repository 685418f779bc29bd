"""Compare our evaluation of a retriever with beir's own; BM25 is shown as well.

    python benchmarks/parity_beir.py COLLECTION MODEL [STORE]

COLLECTION is a folder in BEIR layout with train and test qrels, MODEL a sentence-transformers model.
beir loads the files, encodes, searches and measures by itself. It rounds its metrics to five places;
we compare them with ours rounded in the same way, and also compare unrounded metrics, computed by
pytrec_eval on beir's run. Exits with 1 if a difference exceeds 1e-6. STORE keeps our vectors for the
next time.
"""

import argparse
import json
import logging
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
from beir.datasets.data_loader import GenericDataLoader
from beir.retrieval.evaluation import EvaluateRetrieval
from beir.retrieval.models import SentenceBERT
from beir.retrieval.search.dense import DenseRetrievalExactSearch

from expandr_core.evaluation.metrics import MEASURES, METRICS, mean_metrics, score_queries
from expandr_core.options.data import DataOptions
from expandr_core.options.evaluation import RankingOptions
from expandr_core.options.retriever import EncodingOptions, FusionOptions, IndexOptions
from expandr_core.records import RUN
from expandr_core.runtime.child_protocol import throttled
from expandr_core.runtime.model_source import model_source
from expandr_core.runtime.runner import make_spec, run_stage
from expandr_core.stages import (
    bm25_index,
    encode,
    evaluate,
    evaluate_bm25,
    import_model,
    prepare,
)
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store

DEPTH = 1000
TOKENS = 512  # or the model's own limit, which is smaller for all-MiniLM-L6-v2


def ours(collection: str, model: str, store: Store) -> tuple[dict[str, float], dict[str, float]]:
    """Run the stages; return the metrics of the retriever and of BM25."""

    def make(stage: str, options, inputs: dict[str, Artifact], sources=None) -> Artifact:
        spec = make_spec(stage, options, inputs, sources=sources)
        report = throttled(lambda done, total, unit: print(f"{stage}: {done}/{total} {unit}"), 30)
        return store.lookup(spec.key) or run_stage(spec, store, report)

    options = DataOptions(collection=collection)
    data = make("prepare", options, {}, prepare.source_digests(options))
    folder, sources = model_source(model)
    importing = import_model.OPTIONS(kind="retriever", folder=str(folder))
    retriever = make("import_model", importing, {}, sources)
    corpus = {"corpus": data.at("corpus.parquet")}
    judged = {"queries": data.at("test_queries.parquet"), "qrels": data.at("test_qrels.parquet")}
    encoding = encode.OPTIONS(
        encoding=EncodingOptions(max_tokens=TOKENS), index=IndexOptions(vector_type="float32")
    )
    ranking = RankingOptions(depth=DEPTH)
    embeddings = make("encode", encoding, corpus | {"retriever": retriever})
    dense = make(
        "evaluate",
        evaluate.OPTIONS(
            encoding=EncodingOptions(max_tokens=TOKENS),
            fusion=FusionOptions(expansion_weight=0),
            ranking=ranking,
        ),
        judged | {"retriever": retriever, "embeddings": embeddings},
    )
    index = make("bm25_index", bm25_index.OPTIONS(), corpus)
    options = evaluate_bm25.OPTIONS(ranking=ranking)
    bm25 = make("evaluate_bm25", options, judged | {"index": index})
    return _metrics(store, dense), _metrics(store, bm25)


def _metrics(store: Store, artifact: Artifact) -> dict[str, float]:
    return json.loads((store.local(artifact) / "metrics.json").read_text())


def beirs(collection: str, model: str) -> tuple[dict[str, float], dict[str, float]]:
    """Let beir do everything; return its metrics, and pytrec_eval's on its run, unrounded."""
    corpus, queries, qrels = GenericDataLoader(collection).load(split="test")
    searcher = DenseRetrievalExactSearch(SentenceBERT(model), batch_size=128)
    retrieval = EvaluateRetrieval(searcher, k_values=[10, 100, DEPTH], score_function="cos_sim")
    run = retrieval.retrieve(corpus, queries)
    ndcg, map_, recall, _ = retrieval.evaluate(qrels, run, retrieval.k_values)
    mrr = retrieval.evaluate_custom(qrels, run, [10], "mrr")
    rounded = {
        "ndcg_at_10": ndcg["NDCG@10"],
        "map": map_[f"MAP@{DEPTH}"],
        "recall_at_100": recall["Recall@100"],
        "mrr_at_10": mrr["MRR@10"],  # pyrefly: ignore[bad-index]
    }
    judgements = [(q, p, grade) for q, grades in qrels.items() for p, grade in grades.items()]
    hits = [
        (query_id, passage_id, score, rank)
        for query_id, scores in run.items()
        for rank, (passage_id, score) in enumerate(sorted(scores.items(), key=lambda s: -s[1]), 1)
    ]
    columns = [list(column) for column in zip(*judgements, strict=True)]
    judged = pa.table(columns, names=["query_id", "passage_id", "relevance"])
    found = pa.table([list(column) for column in zip(*hits, strict=True)], schema=RUN)
    return rounded, mean_metrics(score_queries(judged, found))


def main() -> int:
    """Print both evaluations and their difference."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("collection")
    parser.add_argument("model")
    parser.add_argument("store", nargs="?", default="")
    arguments = parser.parse_args()
    collection, model, store = arguments.collection, arguments.model, arguments.store
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        dense, bm25 = ours(collection, model, Store(store or folder))
    rounded, unrounded = beirs(collection, model)
    worst = 0.0
    print(f"{Path(collection).name}, {dense['queries']} queries, {Path(model).name}")
    print("metric        ours        beir      difference  unrounded difference  BM25")
    for name in METRICS:
        difference = abs(round(dense[name], 5) - rounded[name])
        exact = abs(dense[name] - unrounded[name])
        worst = max(worst, difference, exact)
        numbers = f"{dense[name]:.7f}   {rounded[name]:.5f}   {difference:.1e}     {exact:.1e}"
        print(f"{MEASURES[name].title:12s}  {numbers}               {bm25[name]:.4f}")
    return int(worst > 1e-6)


if __name__ == "__main__":
    sys.exit(main())
