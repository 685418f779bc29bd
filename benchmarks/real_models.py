"""The tables of docs/results.md on real models: recorded from a store, printed, and checked against it.

    python -m benchmarks.real_models record STORE TITLE=RUN ...   # into results/real_models.json
    python -m benchmarks.real_models tables                       # as they stand in docs/results.md
    python -m benchmarks.real_models check STORE                  # exits with 1 if a number differs

A number is recorded by the name that `expandr explain` has for it, if computing it again confirms it.
Runs of one title are the seeds of one table. tests/test_real_models.py holds the document to the record.
"""

import argparse
import json
import re
import statistics
from pathlib import Path
from typing import Any

from expandr_core.evaluation.comparison import read_comparison, titles_of
from expandr_core.lineage.explain import check_all
from expandr_core.lineage.finding import find_run
from expandr_core.store.run_records import RecordedRun
from expandr_core.store.store import Store

RECORD = Path(__file__).resolve().parent / "results" / "real_models.json"
METRICS = ("ndcg@10", "recall@100")
ALONE = "query"
WEIGHTS = ("0", "0.1", "0.2", "0.3", "0.5", "1")  # of expansions, on dev
AUDIT = ("queries", "gain", "any.queries", "any.gain_without")
AUDITED = "round-1"
LEFT_OUT = ("untrained-alone", "round-1-alone")  # expansions without their query
Run = dict[str, Any]


def record(store: Store, named: list[str]) -> None:
    """Write the numbers of runs, by title."""
    found: dict[str, list[Run]] = {}
    for title, _, name in (each.rpartition("=") for each in named):
        found.setdefault(title, []).append(excerpt(store, find_run([store], name)[1]))
    RECORD.write_text(json.dumps(found, indent=1) + "\n")


def excerpt(store: Store, run: RecordedRun) -> Run:
    """Return what tables show of a run."""
    comparison = read_comparison(store.local(run.report))
    titles = {name: text for name, text in titles_of(comparison).items() if name not in LEFT_OUT}
    [dataset] = [each["name"] for each in comparison["datasets"]]
    confirmed = {e["what"]: e["value"] for e in check_all(store, run) if e["check"]["agrees"]}
    wanted = [f"{system}/{metric}" for system in titles for metric in METRICS]
    tests = [f"{ALONE}..{system}" for system in titles]
    wanted += [f"{test}/{field}" for test in tests for field in ("corrected_p", "difference")]
    wanted += [f"{test}/difference_{limit}" for test in tests for limit in ("low", "high")]
    wanted += [f"{system}/leakage.{field}" for system in titles for field in AUDIT]
    numbers = {what: confirmed.get(f"{dataset}/{what}") for what in wanted}
    return {
        "run": run.name,
        "dataset": dataset,
        "queries": confirmed[f"{dataset}/{ALONE}/queries"],
        "titles": titles,
        "numbers": {what: value for what, value in numbers.items() if value is not None},
        "dev": _by_weight(store, run),
    }


def _by_weight(store: Store, run: RecordedRun) -> dict[str, float]:
    """Return nDCG@10 on the dev queries by the weight of the expansions, as the gate learned it."""
    [gate] = [step.artifact for step in run.steps if step.id.stage == "gate"]
    return json.loads((store.local(gate) / "gate.json").read_text())["dev"]["by_weight"]


def tables() -> list[str]:
    """Return a table in Markdown for each title, one of the weights, and one of leakage."""
    recorded = json.loads(RECORD.read_text())
    systems = [_table(title, runs) for title, runs in recorded.items()]
    return [*systems, _weights(recorded), _leakage(recorded)]


def _leakage(recorded: dict[str, list[Run]]) -> str:
    lines = [
        "| gain of the retrained retriever | all queries | without those | that may be leaked |"
    ]
    lines.append("|---|--:|--:|--:|")
    for title, runs in recorded.items():
        found = [run["numbers"] for run in runs if f"{AUDITED}/leakage.gain" in run["numbers"]]
        cells = [
            _spread([numbers[f"{AUDITED}/leakage.{field}"] for numbers in found], form)
            for field, form in zip(
                ("gain", "any.gain_without", "any.queries"), ("+.3f", "+.3f", ".0f"), strict=True
            )
        ]
        if found:
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _weights(recorded: dict[str, list[Run]]) -> str:
    lines = [f"| dev queries | {' | '.join(WEIGHTS)} |", "|---" + "|--:" * len(WEIGHTS) + "|"]
    for title, runs in recorded.items():
        cells = [_spread([run["dev"][weight] for run in runs], ".3f") for weight in WEIGHTS]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _table(title: str, runs: list[Run]) -> str:
    seeds = f", mean ± standard deviation of {len(runs)} seeds" if len(runs) > 1 else ""
    lines = [
        f"**{title}.** {runs[0]['queries']} queries{seeds}.",
        "",
        "| system | nDCG@10 | Recall@100 | against the query alone | p (Holm) |",
        "|---|--:|--:|--:|--:|",
    ]
    return "\n".join([*lines, *(_line(name, runs) for name in runs[0]["titles"])])


def _line(system: str, runs: list[Run]) -> str:
    def values(what: str) -> list[float]:
        return [run["numbers"][what] for run in runs if what in run["numbers"]]

    test = f"{ALONE}..{system}"
    gain = _spread(values(f"{test}/difference"), "+.3f")
    if len(runs) == 1 and gain:
        limits = [
            f"{value:+.3f}"
            for end in ("low", "high")
            for value in values(f"{test}/difference_{end}")
        ]
        gain += f" ({' to '.join(limits)})"
    title = runs[0]["titles"][system]
    if len(runs) > 1:  # each seed learns a weight of its own
        title = re.sub(r"(learned weight) [\d.]+", r"\1", title)
    cells = [_spread(values(f"{system}/{metric}"), ".3f") for metric in METRICS]
    p = ", ".join(f"{value:.2g}" for value in values(f"{test}/corrected_p"))
    return f"| {' | '.join([title, *cells, gain, p])} |"


def _spread(values: list[float], form: str) -> str:
    if not values:
        return ""
    mean = f"{statistics.mean(values):{form}}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.3f}"


def check(store: Store) -> int:
    """Compute all numbers again; return how many runs differ from the record."""
    runs = [run for found in json.loads(RECORD.read_text()).values() for run in found]
    differ = [run["run"] for run in runs if excerpt(store, find_run([store], run["run"])[1]) != run]
    print(f"{len(runs) - len(differ)} of {len(runs)} runs have the recorded numbers", *differ)
    return len(differ)


def main() -> int:
    """Record, print or check."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("what", choices=["record", "tables", "check"])
    parser.add_argument("store", nargs="?", default="store")
    parser.add_argument("runs", nargs="*", metavar="TITLE=RUN")
    arguments = parser.parse_args()
    if arguments.what == "tables":
        print("\n\n".join(tables()))
        return 0
    store = Store(arguments.store)
    if arguments.what == "check":
        return min(check(store), 1)
    record(store, arguments.runs)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
