"""Index a corpus for BM25, once for all evaluations and splits.

Input: `corpus`. Writes bm25s's arrays, which are mapped into memory when it is searched, and tables of
the passages' ids and of the terms; see `retrieval.bm25`.
"""

import pyarrow.parquet as pq

from expandr_core.options.base import Options
from expandr_core.options.evaluation import Language
from expandr_core.planning.workload import PlannedStep
from expandr_core.records import Passage, passages_in
from expandr_core.retrieval.bm25 import build_bm25
from expandr_core.runtime.job import Job

VERSION = 1
ROLE = "measure"
ISOLATION = "never"


class BM25IndexOptions(Options):
    """How texts become terms."""

    language: Language = "english"


OPTIONS = BM25IndexOptions
BYTES_GROW_WITH = "passages"


def workload(step: PlannedStep) -> dict[str, float]:
    """Return the passages to index."""
    return {"passages": step.rows("corpus")}


def predict(step: PlannedStep) -> dict[str, float]:
    """Predict that every passage is indexed."""
    return {"passages": step.rows("corpus")}


def run(job: Job) -> None:
    """Index the corpus."""
    options: BM25IndexOptions = job.options
    ids = pq.read_table(job.inputs["corpus"], columns=["passage_id"])["passage_id"]
    batches = pq.ParquetFile(job.inputs["corpus"]).iter_batches(columns=list(Passage._fields))
    passages = (passage.content for batch in batches for passage in passages_in(batch))
    index = build_bm25(ids.combine_chunks(), passages, language=options.language)
    index.save(job.out)
    job.counts |= {"passages": len(ids), "terms": len(index.terms)}
