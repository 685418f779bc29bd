"""One report for runs of the joint loop that differ in their seed, on one collection or several.

    python -m benchmarks.pooled_seeds STORE COLLECTION=RUN ...   # a run for each seed of a collection

A query's score is its mean over the seeds, and all tests are one family (Holm). *Found on dev* is what
each run keeps: the models that its tests on dev chose, with the gate that was learned there, if
there is one. The report is that of a run: `expandr report` and `expandr explain` know it.
"""

import argparse
import re
from collections.abc import Container

from prefect import flow

from expandr_cli.temporary_server import prefect_server, run_flow
from expandr_cli.terminal import absolute, notify, user_errors
from expandr_core.errors import DataError
from expandr_core.evaluation.comparison import (
    Contrast,
    MeasuredDataset,
    System,
    dataset_key,
    titles_of,
)
from expandr_core.lineage.compared_run import ComparedRun
from expandr_core.lineage.finding import find_run
from expandr_core.lineage.options import differing
from expandr_core.options.base import identity
from expandr_core.stages.compare import CompareOptions
from expandr_core.store.artifacts import Artifact
from flows.report import publish_report
from flows.run_record import Record, end_record, loop_run, noted, write_record
from tasks.pipeline import Pipeline
from tasks.stage import open_store

KIND = "pooled-seeds"
ALONE, CONTROL, GATED = "query", "control", "gated"  # as the loop names its systems
FOUND = "found"
LEFT_OUT = ("untrained-alone", "round-1-alone")  # expansions without their query


class PooledSeeds(Record):
    """What the flow leaves behind.

    Attributes:
        runs: that were pooled, by collection.
    """

    runs: dict[str, list[str]]


@flow(name=KIND)
def pooled_seeds(runs: dict[str, list[str]], store: str = "store") -> PooledSeeds:
    """Compare the systems that all runs have measured.

    Args:
        runs: their names, by collection.
        store: that keeps them.
    """
    first = next(name for names in runs.values() for name in names)
    pipeline = Pipeline(store, loop_run(open_store(store), first).options)
    with noted(pipeline, KIND, ", ".join(runs), "none") as started:
        report = compared(pipeline, runs)
        record = PooledSeeds(**end_record(pipeline, started, report), runs=runs)
        write_record(pipeline, record, KIND)
    publish_report(pipeline, record, f"{KIND}-report")
    return record


def compared(pipeline: Pipeline, runs: dict[str, list[str]]) -> Artifact:
    """Compare what the runs have measured, paired by collection, seed and query.

    Raises:
        DataError: if two runs of a collection have one seed, or differ in more than that.
    """
    store, inputs, datasets = pipeline.open(), dict[str, Artifact](), list[MeasuredDataset]()
    titles: list[dict[str, str]] = []
    for collection, names in runs.items():
        seeds: list[str] = []
        first = identity(loop_run(store, names[0]).options)
        for name in names:
            others = differing(first, identity(loop_run(store, name).options)).keys() - {"seed"}
            if others:
                raise DataError(
                    f"{name} differs from {names[0]} in {', '.join(sorted(others))}, not only in its "
                    f"seed; leave it out of {collection}, or pool it under another name"
                )
            run = ComparedRun(store, find_run([store], name)[1])
            seed = f"seed-{run.run.options['seed']}"
            if seed in seeds:
                raise DataError(
                    f"{name} is a second run of {collection} with {seed}; leave one out"
                )
            seeds.append(seed)
            place = dataset_key(collection, seed)
            titles.append(titles_of(run.comparison))
            found = GATED if GATED in titles[-1] else run.comparison["kept"]["expanded"]
            [split] = [each["name"] for each in run.comparison["datasets"]]
            made = {
                role.replace(f"/{split}", f"/{place}", 1): Artifact(**each)
                for role, each in run.lineage.node(run.run.report.key).inputs.items()
            }
            inputs |= made
            inputs[f"measured/{place}/{FOUND}/0"] = made[f"measured/{place}/{found}/0"]
        datasets.append(MeasuredDataset(name=collection, subsets=tuple(seeds)))
    shared = {
        name: title
        for name, title in titles[0].items()
        if name not in LEFT_OUT and all(name in each for each in titles)
    } | {FOUND: "found on dev"}
    return pipeline.step(
        "compare",
        {role: made for role, made in inputs.items() if _is_about(role, shared)},
        "compare the systems over seeds",
        options=questions(pipeline, shared, datasets),
    )


def questions(
    pipeline: Pipeline, titles: dict[str, str], datasets: list[MeasuredDataset]
) -> CompareOptions:
    """Ask of each system whether it beats the query alone, and whether expansions have a part in it."""
    asked = [name for name in titles if name != ALONE and not name.startswith("bm25")]
    pairs = [(ALONE, name) for name in asked] + [(CONTROL, FOUND)] * (CONTROL in titles)
    # which models a gate is of, and the weight, are a seed's own
    said = {
        name: re.sub(r".*, (learned weight|gated [a-z ]+?)( [\d.]+)?$", r"what is kept, \1", title)
        for name, title in titles.items()
    }
    return CompareOptions(
        systems=tuple(
            System(name=name, title=title, baseline=ALONE if name in asked else "")
            for name, title in said.items()
        ),
        datasets=tuple(datasets),
        contrasts=tuple(
            Contrast(
                before=before,
                after=after,
                question=f"Is '{said[after]}' better than '{said[before]}'?",
            )
            for before, after in pairs
        ),
        significance=pipeline.options.evaluate.significance,
        subsets_are="seeds",
    )


def _is_about(role: str, systems: Container[str]) -> bool:
    """Tell whether an input is about queries, or measures or audits one of the systems."""
    kind, *place = role.split("/")
    return kind == "queries" or place[-2 if kind == "measured" else -1] in systems


def main() -> None:
    """Pool runs; print the name of the run that has the report."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("runs", nargs="+", metavar="COLLECTION=RUN")
    arguments = parser.parse_args()
    runs: dict[str, list[str]] = {}
    for each in arguments.runs:
        collection, _, name = each.partition("=")
        runs.setdefault(collection, []).append(name)
    with user_errors(), prefect_server(notify):
        print(run_flow(pooled_seeds, runs=runs, store=absolute(arguments.store)).name)


if __name__ == "__main__":
    main()
