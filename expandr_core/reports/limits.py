"""What a run cannot say, and what its numbers suggest to try; both follow from its facts."""

from typing import Any

from expandr_core.evaluation.metrics import MEASURES
from expandr_core.evaluation.significance import FEWEST
from expandr_core.preferences.audit import CERTAIN

Report = dict[str, Any]
FEW_CLUSTERS = 30


def limits_of(report: Report) -> list[str]:
    """Return sentences about what the numbers do not show, from the rest of the report."""
    said = [*_about_data(report), *_about_chance(report), *_about_choice(report)]
    return [*said, *_about_leakage(report), *(f"{each}." for each in report["warnings"])]


def _about_data(report: Report) -> list[str]:
    said = []
    sources = {step["stage"] for step in report["cost"]["stages"]}
    if "demo_world" in sources:
        said.append(
            "The world is synthetic and the models are tiny: the numbers show the mechanism, not what "
            "real collections or larger models reach."
        )
    if len(report["datasets"]) == 1:
        said.append(
            "One collection was measured; the run says nothing about other domains or languages."
        )
    said.append(
        "Passages that nobody judged count as not relevant, so a system that finds other good passages "
        "is undervalued."
    )
    return said


def _about_chance(report: Report) -> list[str]:
    said, tests = [], report["tests"]
    row = report["headline"] or (report["systems"][0] if report["systems"] else None)
    if row and row["clusters"] < FEW_CLUSTERS:
        kind = "t-test" if row["clusters"] >= FEWEST else "randomisation test"
        said.append(
            f"There are only {row['clusters']} independent observations for the {kind}: small "
            "differences cannot be told from chance."
        )
    head = report["headline"]
    if head and head["low"] is not None:
        said.append(
            f"The difference is known to about ±{(head['high'] - head['low']) / 2:.3f} "
            f"{MEASURES[report['metric']].title}; a smaller difference needs a test of its own."
        )
    if report["seeds"] == 1:
        said.append(
            f"Everything was trained once, with seed {report['run']['seed']}. Intervals and p-values "
            "are about other queries, not other seeds, which can change the order of close systems."
        )
    unclear = [each for each in tests if each["effect"] in ("unclear", "too few")]
    if unclear:
        said.append(
            f"{len(unclear)} of {len(tests)} tests show no difference. That does not prove that these "
            "systems are equal."
        )
    untested = len(report["systems"]) - len({each["after"] for each in tests})
    if untested and tests:
        said.append("Pairs of systems that no test names were not compared beyond their scores.")
    return said


def _about_choice(report: Report) -> list[str]:
    kept = report["kept"]
    if not kept:
        return ["No models were chosen: the best of many systems looks better than it is."]
    said = []
    if report["run"]["best_round"]:
        said.append(
            "The round was chosen on dev queries of the same collection; on another collection another "
            "round may be best."
        )
    if any(each["dataset"] == "dev" for each in report["datasets"]):
        said.append(
            "The reported queries are those that the round was chosen on: it looks too good."
        )
    return said


def _about_leakage(report: Report) -> list[str]:
    audits = report["leakage"]
    said = []
    if not audits:
        said.append("Nothing was audited for leakage of test data into the training or the texts.")
    for audit in audits:
        marked = audit["any"]
        if marked["queries"]:
            said.append(
                f"Of {audit['queries']} queries {marked['queries']} may be leaked for "
                f"{audit['title']} on {audit['dataset']}; look at the gain without them."
            )
            break
    said.append(
        "What the language model read in its pretraining is unknown; it may have seen these texts."
    )
    return said


def suggestions_of(report: Report) -> list[str]:
    """Return what the numbers suggest to try next."""
    said, metric, head = [], report["metric"], report["headline"]
    place = head["dataset"] if head else ""
    rows = {row["system"]: row for row in report["systems"] if row["dataset"] == place}
    best = max(rows.values(), key=lambda row: row[metric], default=None)
    if best and head and best["system"] != head["after"]:
        own = rows[head["after"]]
        said.append(
            f"On {place}, {best['title']} reaches {best[metric]:.3f} and {own['title']} "
            f"{own[metric]:.3f}: try the former, and test it on queries that were not used here."
        )
    said += _about_losses(report)
    said += _about_rounds(report)
    for side in ("longer", "shorter"):
        biased = [
            audit["label"]
            for audit in report["pair_audits"]
            if audit["length_p"] < CERTAIN
            and (audit["chosen_longer"] > audit["rejected_longer"]) == (side == "longer")
        ]
        if biased:
            said.append(
                f"Chosen texts are mostly the {side} ones ({' and '.join(biased)}): check that "
                "the LLM does not learn a length."
            )
    if report["seeds"] == 1:
        said.append("Repeat the run with other seeds before you rely on a close comparison.")
    return said


def _about_losses(report: Report) -> list[str]:
    """Say what hurts: systems that are worse than what they are compared with, and single queries."""
    said = [
        f"{test['after_title']} is worse than {test['before_title']} on {test['dataset']} "
        f"({test['difference']:+.3f}): leave out what tells them apart."
        for test in report["tests"]
        if test["effect"] == "worse"
    ]
    queries = report["queries"]
    if "unavailable" not in queries and queries["worst"]:
        start = "" if said else "No test shows that anything hurts on average, but "
        said.append(
            f"{start}{queries['losses']} of {queries['queries']} queries lose by "
            f"{queries['after_title']}, at worst {queries['worst'][0]['difference']:+.3f}."
        )
    return said


def _about_rounds(report: Report) -> list[str]:
    """Say whether the last round was worth it, by its test."""
    points = [line["points"] for line in report["rounds"] if line["line"] == "round-N"]
    if not points:
        return []
    if len(points[0]) == 2:
        return ["One round was run; a second shows whether the gain goes on."]
    before, last = points[0][-2:]
    more = f"The last round changed the joint system by {last['value'] - before['value']:+.3f}"
    effects = [
        test["effect"]
        for test in report["tests"]
        if (test["before"], test["after"]) == (before["system"], last["system"])
    ]
    if effects == ["better"]:
        return [f"{more}, which is significant: another round may bring more."]
    if effects == ["worse"]:
        return [f"{more}, which is significant: fewer rounds are better."]
    return [f"{more}, which no test tells from chance: more rounds are not worth their cost yet."]
