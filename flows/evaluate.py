"""Evaluate alone: measure a retriever, with or without expansions."""

from prefect import flow

from expandr_core.evaluation.comparison import MeasuredDataset
from expandr_core.options.loop import JointLoopOptions
from expandr_core.store.run_records import Step
from tasks.comparison import Comparison, Measured, Mode
from tasks.data import Evaluation
from tasks.pipeline import Pipeline
from tasks.placement import Placement

HERE = Placement()


@flow(name="evaluate")
def evaluate(
    options: JointLoopOptions,
    retriever: str,
    corpus: str,
    queries: str,
    qrels: str,
    expansions: str = "",
    mode: Mode = "fused",
    placement: Placement = HERE,
    store: str = "store",
) -> list[Step]:
    """Measure a retriever on queries and judgements, beside BM25 and the bare query.

    Args:
        options: The options of every stage; `evaluate`, `retriever` and `seed` matter here.
        retriever: Key of a retriever.
        corpus: Key and file of the passages, such as prepare-1f3a/corpus.parquet.
        queries: Key and file, such as prepare-1f3a/test_queries.parquet.
        qrels: Key and file, such as prepare-1f3a/test_qrels.parquet.
        expansions: Key of the queries' expansions; empty for none.
        mode: Search with the mean of query and expansion, or with one of them.
        placement: Where each kind of stage runs.
        store: Folder or s3:// URL that keeps every artifact.
    """
    pipeline = Pipeline(store, options, placement)
    evaluation = Evaluation(pipeline.find(queries), pipeline.find(qrels), pipeline.find(corpus))
    measured = Measured(MeasuredDataset(name="alone"), {"": evaluation})
    systems, model = Comparison([measured]), pipeline.find(retriever)
    systems.bm25(pipeline, "bm25", "BM25")
    systems.dense(pipeline, "query", "query only", model)
    if expansions:
        written = {"alone": [pipeline.find(expansions)]}
        title = f"with expansion, {mode}"
        systems.dense(pipeline, "expanded", title, model, written, mode)
        systems.ask("query", "expanded", "Does the expansion help?", baseline=True)
    pipeline.publish(systems.report(pipeline), "report.md", "evaluation-report")
    return list(pipeline.steps)
