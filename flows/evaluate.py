"""Evaluate alone: measure a retriever, with or without expansions."""

from prefect import flow

from expandr_core.options.loop import JointLoopOptions
from expandr_core.store.artifacts import Artifact
from tasks.data import Evaluation
from tasks.evaluate import Mode, Scoreboard, publish
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
    board = Scoreboard(work, evaluation, "alone", options.retriever, options.evaluate)
    model = work.find(retriever)
    board.bm25("bm25", "BM25")
    board.dense("query", "query only", model)
    if expansions:
        board.dense("expanded", f"with expansion, {mode}", model, work.find(expansions), mode)
        board.step("query", "expanded", "Does the expansion help?")
    publish(work, board.report())
    return work.made
