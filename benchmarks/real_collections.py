"""Split real collections for the study in docs/results.md, by the SHA-256 of the queries' ids.

    python -m benchmarks.real_collections DATA OUT     # folders of collections in BEIR layout

cranfield, med, cacm, cisi,        no training queries: half of the test queries become dev queries
npl, time, lisa
scifact, nfcorpus_norm             150 training queries become dev queries
stackfaq                           threads become clusters, every fifth training thread dev queries

Collections that are not there are passed over.
"""

import argparse
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

UNTRAINED = ("cranfield", "med", "cacm", "cisi", "npl", "lisa", "time")
TRAINED = ("scifact", "nfcorpus_norm")
DEV_QUERIES = 150


def main() -> int:
    """Split all collections."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    for source in sorted(arguments.data.iterdir()):
        name, train = source.name, source / "qrels" / "train.tsv"
        if name not in (*UNTRAINED, *TRAINED, "stackfaq"):
            continue
        target = copied(source, arguments.out / name)
        if name in UNTRAINED:
            ids = hashed_ids(source / "qrels" / "test.tsv")
            chosen = set(ids[: len(ids) // 2])
            split(source / "qrels" / "test.tsv", target, chosen.__contains__, rest="test")
        elif name in TRAINED:
            chosen = set(hashed_ids(train)[:DEV_QUERIES])
            split(train, target, chosen.__contains__, rest="train")
        else:
            name_threads(target / "queries.jsonl")
            split(train, target, lambda id_: thread_of(id_) % 25 == 0, rest="train")
    return 0


def copied(source: Path, target: Path) -> Path:
    """Copy a collection."""
    shutil.copytree(source, target, dirs_exist_ok=True, copy_function=shutil.copyfile)
    return target


def hashed_ids(qrels: Path) -> list[str]:
    """Return the ids of judged queries in an order that looks random."""
    ids = {line.split("\t")[0] for line in qrels.read_text().splitlines()[1:]}
    return sorted(ids, key=lambda id_: hashlib.sha256(id_.encode()).hexdigest())


def split(qrels: Path, target: Path, is_dev: Callable[[str], bool], rest: str) -> None:
    """Write the judgements of dev queries, and the others."""
    head, *rows = qrels.read_text().splitlines()
    for name, wanted in (("dev", True), (rest, False)):
        kept = [row for row in rows if is_dev(row.split("\t")[0]) == wanted]
        (target / "qrels" / f"{name}.tsv").write_text("\n".join([head, *kept]) + "\n")


def thread_of(query_id: str) -> int:
    """Return the number of a query's thread: 7 of t7-q3."""
    return int(query_id.partition("-")[0][1:])


def name_threads(queries: Path) -> None:
    """Write each query's thread into its metadata, for `data.cluster_by`."""
    rows = [json.loads(line) for line in queries.read_text().splitlines()]
    lines = [json.dumps(row | {"metadata": {"thread": thread_of(row["_id"])}}) for row in rows]
    queries.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
