"""The tables of docs/results.md: recorded from a store, printed, and checked against it.

    python -m benchmarks.real_models record STORE TITLE=RUN[/DATASET] ...   # results/real_models.json
    python -m benchmarks.real_models rounds STORE TITLE=RUN ...   # results/real_rounds.json
    python -m benchmarks.real_models counts STORE TITLE=KEY ...   # results/real_counts.json
    python -m benchmarks.real_models figures STORE NAME/PICTURE=RUN ...   # docs/figures/NAME.svg
    python -m benchmarks.real_models tables         # as they stand in docs/results.md
    python -m benchmarks.real_models check STORE    # what it has; exits with 1 if a number differs

A number is recorded by the name that `expandr explain` has for it, if computing it again confirms it.
Several seeds are one run of benchmarks.pooled_seeds. tests/test_real_models.py holds the document to the
record.
"""

import argparse
import json
import statistics
from collections import Counter
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from expandr_core.evaluation.comparison import MeasuredDataset, titles_of
from expandr_core.lineage.compared_run import ComparedRun
from expandr_core.lineage.explain import check_all
from expandr_core.lineage.finding import find_run
from expandr_core.lineage.nodes import total
from expandr_core.options.loop import LoopOptions
from expandr_core.reports.figures import figures_of
from expandr_core.reports.palette import DARK, LIGHT, css
from expandr_core.reports.report import report_of
from expandr_core.store.artifacts import Artifact
from expandr_core.store.run_records import RecordedRun
from expandr_core.store.store import Store

RECORD = Path(__file__).resolve().parent / "results" / "real_models.json"
FIGURES = RECORD.parents[2] / "docs" / "figures"
ROUNDS = RECORD.with_name("real_rounds.json")
COUNTS = RECORD.with_name("real_counts.json")
METRICS = ("ndcg@10", "recall@100")
SCORES = [f"{metric}{of}" for metric in METRICS for of in ("", "_deviation")]
TEST = ("corrected_p", "difference", "difference_low", "difference_high")
ALONE = "query"
WEIGHTS = ("0", "0.1", "0.2", "0.3", "0.5", "1")  # of expansions, on dev
AUDIT = {"gain": "+.3f", "any.gain_without": "+.3f", "any.queries": ".0f"}
AUDITED = "round-1"
LEVEL = LoopOptions().keep_level
DPO = "DPO, "
LEFT_OUT = ("untrained-alone", "round-1-alone")  # expansions without their query
Run = dict[str, Any]


def record(store: Store, named: list[str]) -> None:
    """Write the numbers of runs, by title."""
    found: dict[str, Run] = {}
    for title, _, where in (each.rpartition("=") for each in named):
        name, _, dataset = where.partition("/")
        found[title] = excerpt(store, find_run([store], name)[1], dataset)
    _write(RECORD, found)


def _write(file: Path, found: dict[str, Any]) -> None:
    """Replace what has the same titles, add what is new, and leave the rest."""
    file.write_text(json.dumps(json.loads(file.read_text()) | found, indent=1) + "\n")


def excerpt(store: Store, run: RecordedRun, dataset: str = "") -> Run:
    """Return what tables show of a run on a dataset, which need not be named if there is one."""
    compared = ComparedRun(store, run)
    known = {each["name"]: MeasuredDataset(**each) for each in compared.comparison["datasets"]}
    [dataset] = [dataset] if dataset else known
    titles = {n: title for n, title in titles_of(compared.comparison).items() if n not in LEFT_OUT}
    keys = {
        name: [key for _, _, key in compared.measured.evaluations(dataset, name)] for name in titles
    }
    confirmed = _confirmed(store, run.name)
    wanted = [f"{dataset}/{name}/{field}" for name in titles for field in SCORES]
    wanted += [f"{dataset}/{ALONE}..{name}/{field}" for name in titles for field in TEST]
    places = known[dataset].keys().values()
    wanted += [f"{place}/{AUDITED}/leakage.{field}" for place in places for field in AUDIT]
    upstream = compared.lineage.upstream
    gates = [node.key for node in upstream(chain(*keys.values())) if node.stage == "gate"]
    return {
        "run": run.name,
        "dataset": dataset,
        "seeds": max(len(known[dataset].subsets), *compared.measured.seeds.values()),
        "queries": confirmed[f"{dataset}/{ALONE}/queries"],
        "titles": titles,
        "numbers": {what: confirmed[what] for what in wanted if what in confirmed},
        "seconds": {name: total(upstream(own)).seconds for name, own in keys.items()},
        "gates": [_gate(store, key) for key in gates],
    }


@cache
def _confirmed(store: Store, name: str) -> dict[str, float]:
    """Compute all numbers of a run again; return those that agree, by name."""
    checked = check_all(store, find_run([store], name)[1])
    return {each["what"]: each["value"] for each in checked if each["check"]["agrees"]}


def _gate(store: Store, key: str) -> dict[str, Any]:
    """Return what was found on the dev queries: the retriever, whether to expand, and the weights."""
    found = json.loads((store.local(Artifact(key=key, digest="")) / "gate.json").read_text())
    retriever = store.manifest(key)["inputs"]["retriever"]["key"]
    return {
        "retriever": "retrained" if retriever.startswith("train_retriever") else "start",
        "expand": found["policy"],
        "weight": found["alpha"],
        "dev": found["dev"]["by_weight"],
    }


def rounds(store: Store, named: list[str]) -> None:
    """Write what the first round of each run has brought, on dev and on test, by title."""
    found = {
        title: _round(store, name) for title, _, name in (each.rpartition("=") for each in named)
    }
    _write(ROUNDS, found)


def _round(store: Store, name: str) -> dict[str, Any]:
    """Return what chose round 1 on dev, and what its retriever gains on test."""
    confirmed = _confirmed(store, name)
    test, retrained = f"dev/round-0..{AUDITED}", f"test/{AUDITED}-query/ndcg@10"
    gain = confirmed[retrained] - confirmed[f"test/{ALONE}/ndcg@10"]
    dev = {what: confirmed[f"dev/{AUDITED}/{what}"] for what in ("ndcg@10", "queries")}
    dev |= {what: confirmed[f"{test}/{what}"] for what in ("difference", "p", "clusters")}
    return {"run": name, "dev": dev, "gain": gain}


def counts(store: Store, named: list[str]) -> None:
    """Write what artifacts count, by title; rewards need two: of the stages reward and pairs."""
    found = {title: _counts(store, key) for title, _, key in (e.rpartition("=") for e in named)}
    _write(COUNTS, found)


def _counts(store: Store, key: str) -> dict[str, Any]:
    return {"key": key, "counts": store.manifest(key)["counts"]}


def figures(store: Store, named: list[str]) -> None:
    """Write pictures of runs' reports, with the colours that a page would give them."""
    for which, _, run in (each.rpartition("=") for each in named):
        name, _, picture = which.partition("/")
        drawn = figures_of(report_of(store, find_run([store], run)[1]))[picture]
        colours = f":root {{ {css(LIGHT)} }}"
        colours += f" @media (prefers-color-scheme: dark) {{ :root {{ {css(DARK)} }} }}"
        head, end, rest = drawn.svg.partition(">")
        FIGURES.mkdir(exist_ok=True)
        (FIGURES / f"{name}.svg").write_text(f"{head}{end}<style>{colours}</style>{rest}")
        print(f"{name}: {drawn.caption}")


def tables() -> list[str]:
    """Return a table in Markdown for each title, and those of gates, leakage, rounds, and rewards."""
    recorded = json.loads(RECORD.read_text())
    systems = [_table(title, run) for title, run in recorded.items()]
    return [*systems, _gates(recorded), _leakage(recorded), _rounds(), *_rewards()]


def _rounds() -> str:
    lines = [
        "| round 1 | nDCG@10 on dev | queries (clusters) | gain | p | kept | gain on test |",
        "|---|--:|--:|--:|--:|---|--:|",
    ]
    for title, each in json.loads(ROUNDS.read_text()).items():
        dev = each["dev"]
        ahead, shown = dev["difference"] > 0, dev["p"] <= LEVEL
        kept = "yes" if ahead and shown else "no, though ahead" if ahead else "no"
        cells = [title, f"{dev['ndcg@10']:.3f}", f"{dev['queries']:.0f} ({dev['clusters']:.0f})"]
        cells += [f"{dev['difference']:+.3f}", f"{dev['p']:.2g}", kept, f"{each['gain']:+.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _rewards() -> list[str]:
    """Return a table of what DPO did, and one of rewards."""
    found = {title: each["counts"] for title, each in json.loads(COUNTS.read_text()).items()}
    aligned = ["| DPO | pairs | steps | orders rightly, first | last |", "|---|--:|--:|--:|--:|"]
    for title in [each for each in found if each.startswith(DPO)]:
        own = found.pop(title)
        right = (own[f"{when}/rewards/accuracies"] for when in ("first", "last"))
        cells = [title.removeprefix(DPO), f"{own['train_pairs']:.0f}", f"{own['steps']:.0f}"]
        cells += [f"{each:.2f}" for each in right]
        aligned.append(f"| {' | '.join(cells)} |")
    lines = [
        "| reward | queries with a pair | pairs accepted | query alone | any candidate | better |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name in dict.fromkeys(title.partition(", ")[0] for title in found):
        rewards, pairs = found[f"{name}, reward"], found[f"{name}, pairs"]
        cells = [f"`{name}`", f"{pairs['with_preference']:.0f} of {pairs['queries']:.0f}"]
        cells.append(f"{pairs['accepted']:.0f}")
        cells += [f"{rewards[f'mean_{of}']:.3f}" for of in ("query_retrieval", "retrieval")]
        lines.append(f"| {' | '.join(cells)} | {rewards['mean_beats_query']:.0%} |")
    return ["\n".join(aligned), "\n".join(lines)]


def _leakage(recorded: dict[str, Run]) -> str:
    lines = [
        "| gain of the retrained retriever | all queries | without those | that may be leaked |"
    ]
    lines.append("|---|--:|--:|--:|")
    for title, run in recorded.items():
        cells = [
            _spread(
                [v for what, v in run["numbers"].items() if what.endswith(f"leakage.{field}")], form
            )
            for field, form in AUDIT.items()
        ]
        if any(cells):
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _gates(recorded: dict[str, Run]) -> str:
    lines = [
        f"| dev queries | {' | '.join(WEIGHTS)} | retriever kept, queries expanded |",
        "|---" + "|--:" * len(WEIGHTS) + "|---|",
    ]
    for title, run in recorded.items():
        cells = [_spread([gate["dev"][w] for gate in run["gates"]], ".3f") for w in WEIGHTS]
        found = Counter(f"{gate['retriever']}, {gate['expand']}" for gate in run["gates"])
        kept = ", ".join(f"{each} ({n})" if n > 1 else each for each, n in found.items())
        lines.append(f"| {title} | {' | '.join(cells)} | {kept} |")
    return "\n".join(lines)


def _table(title: str, run: Run) -> str:
    seeds = f", mean ± standard deviation of {run['seeds']} seeds" if run["seeds"] > 1 else ""
    lines = [
        f"**{title}.** {run['queries']} queries{seeds}.",
        "",
        "| system | nDCG@10 | Recall@100 | against the query alone | p (Holm) | minutes |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    return "\n".join([*lines, *(_line(name, run) for name in run["titles"])])


def _line(system: str, run: Run) -> str:
    def value(what: str, form: str) -> str:
        found = run["numbers"].get(f"{run['dataset']}/{what}")
        return "" if found is None else f"{found:{form}}"

    test, cells = f"{ALONE}..{system}", [run["titles"][system]]
    for metric in METRICS:
        deviation = value(f"{system}/{metric}_deviation", ".3f")
        varied = f" ± {deviation}" if float(deviation or 0) else ""
        cells.append(value(f"{system}/{metric}", ".3f") + varied)
    gain = value(f"{test}/difference", "+.3f")
    limits = [value(f"{test}/difference_{side}", "+.3f") for side in ("low", "high")]
    cells.append(f"{gain} ({' to '.join(limits)})" if gain else "")
    cells += [value(f"{test}/corrected_p", ".2g"), f"{run['seconds'][system] / 60:.1f}"]
    return f"| {' | '.join(cells)} |"


def _spread(values: list[float], form: str) -> str:
    if not values:
        return ""
    mean = f"{statistics.mean(values):{form}}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values):{form.lstrip('+')}}"


def check(store: Store) -> int:
    """Compute the numbers that the store has again; return how many tables differ from the record."""
    recorded, chosen, counted = (json.loads(file.read_text()) for file in (RECORD, ROUNDS, COUNTS))
    runs, keys = {each["name"] for each in store.records()}, set(store.keys())
    again = [
        (title, run == excerpt(store, find_run([store], run["run"])[1], run["dataset"]))
        for title, run in recorded.items()
        if run["run"] in runs
    ]
    again += [(t, e == _round(store, e["run"])) for t, e in chosen.items() if e["run"] in runs]
    again += [(t, e == _counts(store, e["key"])) for t, e in counted.items() if e["key"] in keys]
    differ = [title for title, same in again if not same]
    every = len(recorded) + len(chosen) + len(counted)
    print(f"{len(again) - len(differ)} of {every} tables, rounds and counts are the store's")
    print(f"{every - len(again)} are of runs that it does not have")
    for title in differ:
        print(f"{title} differs")
    return len(differ)


def main() -> int:
    """Record, print or check."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    writers = {"record": record, "rounds": rounds, "counts": counts, "figures": figures}
    parser.add_argument("what", choices=[*writers, "tables", "check"])
    parser.add_argument("store", nargs="?", default="store")
    parser.add_argument("runs", nargs="*", metavar="TITLE=RUN[/DATASET]")
    arguments = parser.parse_args()
    if arguments.what == "tables":
        print("\n\n".join(tables()))
        return 0
    store = Store(arguments.store)
    if arguments.what == "check":
        return min(check(store), 1)
    writers[arguments.what](store, arguments.runs)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
