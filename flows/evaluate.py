"""Evaluate alone: measure a retriever, with or without expansions."""

from prefect import flow

from expandr_core.evaluation.comparison import MeasuredDataset
from expandr_core.options.loop import JointLoopOptions
from expandr_core.store.artifacts import Artifact
from tasks.comparison import Comparison, Measured, Mode
from tasks.data import Evaluation
from tasks.placement import Placement
from tasks.stage import Workspace

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
) -> list[tuple[str, Artifact]]:
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
    work = Workspace(store=store, seed=options.seed, device=options.device, placement=placement)
    evaluation = Evaluation(work.find(queries), work.find(qrels), work.find(corpus))
    measured = Measured(MeasuredDataset(name="alone"), {"": evaluation})
    systems, model = Comparison(work, options.evaluate, [measured]), work.find(retriever)
    systems.bm25("bm25", "BM25")
    systems.dense("query", "query only", model, options.retriever)
    if expansions:
        written = {"alone": [work.find(expansions)]}
        title = f"with expansion, {mode}"
        systems.dense("expanded", title, model, options.retriever, written, mode)
        systems.ask("query", "expanded", "Does the expansion help?", baseline=True)
    work.publish(systems.report(), "report.md", "evaluation-report")
    return work.made
