"""Write the demo world: a collection in BEIR layout, a log of queries, and texts for the tiny LLM.

Writes `collection/` (corpus.jsonl, queries.jsonl, qrels/{train,dev,test}.tsv), `log.txt` (queries
without judgements, none of them in the collection) and `texts.parquet` (kind "text" or "chat", prompt,
text; in training order).
"""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from expandr_core.demo.texts import training_texts
from expandr_core.demo.world import World, make_world, query_log
from expandr_core.options.data import DemoWorldOptions
from expandr_core.runtime.job import Job

VERSION = 3
ROLE = "data"
ISOLATION = "never"
OPTIONS = DemoWorldOptions
LOG = "log.txt"


def run(job: Job) -> None:
    """Write the world drawn from the run's seed."""
    world = make_world(job.options, job.seed)
    write_collection(world, job.out / "collection")
    log = query_log(world, job.seed)
    (job.out / LOG).write_text("".join(f"{query}\n" for query in log), encoding="utf-8")
    texts = list(training_texts(world, job.seed))
    columns = {name: [getattr(text, name) for text in texts] for name in ("kind", "prompt", "text")}
    pq.write_table(pa.table(columns), job.out / "texts.parquet", compression="zstd")
    job.counts |= {"passages": len(world.passages), "texts": len(texts), "log": len(log)}
    job.counts |= {f"{split}_queries": len(asked) for split, asked in world.questions.items()}


def write_collection(world: World, folder: Path) -> None:
    """Write a world's passages, questions and qrels in BEIR layout."""
    (folder / "qrels").mkdir(parents=True)
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as file:
        for passage_id, text in world.passages.items():
            file.write(json.dumps({"_id": passage_id, "title": "", "text": text}) + "\n")
    with (folder / "queries.jsonl").open("w", encoding="utf-8") as file:
        for question in (q for asked in world.questions.values() for q in asked):
            metadata = {"entity": f"{question.entity.number:03d}"}
            line = {"_id": question.query_id, "text": question.text, "metadata": metadata}
            file.write(json.dumps(line) + "\n")
    for split, asked in world.questions.items():
        with (folder / "qrels" / f"{split}.tsv").open("w", encoding="utf-8") as file:
            file.write("query-id\tcorpus-id\tscore\n")
            for question in asked:
                file.write(f"{question.query_id}\t{question.passage_id}\t1\n")
