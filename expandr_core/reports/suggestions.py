"""What the numbers of a run suggest to try; it follows from the facts of its report."""

from typing import Any

from expandr_core.evaluation.render import format_p, signed
from expandr_core.preferences.audit import CERTAIN

Report = dict[str, Any]
MANY_CUT_PERCENT = 20.0


def suggestions_of(report: Report) -> list[str]:
    """Return what the numbers suggest to try next."""
    said = [*_about_best(report), *_about_losses(report), *_about_rounds(report)]
    said += _about_lengths(report)
    if report["seeds"] == 1:
        said.append("Repeat the run with other seeds before you rely on a close comparison.")
    return said


def _about_best(report: Report) -> list[str]:
    """Say whether to use another system than the one that the report is about."""
    metric, head = report["metric"], report["headline"]
    if not head:
        return []
    rows = {row["system"]: row for row in report["systems"] if row["dataset"] == head["dataset"]}
    best, own = max(rows.values(), key=lambda row: row[metric]), rows[head["after"]]
    if best["system"] == head["after"]:
        return []
    said = (
        f"On {head['dataset']}, {best['title']} reaches {best[metric]:.3f} and {own['title']} "
        f"{own[metric]:.3f}"
    )
    pair = {best["system"], own["system"]}
    effects = {
        test["effect"]
        for test in report["tests"]
        if {test["before"], test["after"]} == pair and test["dataset"] == head["dataset"]
    }
    if effects & {"better", "worse"}:
        return [
            f"{said}, which is significant: use the former, after a test on queries not used here."
        ]
    return [f"{said}, but no test shows which is better: do not choose between them by that."]


def _about_losses(report: Report) -> list[str]:
    """Say what hurts: systems that are worse than what they are compared with, and single queries."""
    expands = {row["system"]: row["expands"] for row in report["systems"]}
    found: dict[tuple[str, str, bool], list[str]] = {}
    for test in report["tests"]:
        if test["effect"] == "worse":
            added = expands[test["after"]] and not expands[test["before"]]
            worse = f"{test['after_title']} ({signed(test['difference'])})"
            found.setdefault((test["before_title"], test["dataset"], added), []).append(worse)
    said = [
        f"Worse than {before} on {dataset}: {', '.join(worse)}. "
        + (
            "Search without expansions, or have better ones written: by another LLM or prompt, or "
            "give them less weight."
            if added
            else f"Keep {before}."
        )
        for (before, dataset, added), worse in found.items()
    ]
    queries = report["queries"]
    if "unavailable" not in queries and queries["worst"]:
        start = "" if said else "No test shows that anything hurts on average, but "
        said.append(
            f"{start}{queries['losses']} of {queries['queries']} queries get worse with "
            f"{queries['after_title']}, at worst by {signed(queries['worst'][0]['difference'])}."
        )
    return said


def _about_rounds(report: Report) -> list[str]:
    """Say whether the last round was worth it, by its test."""
    points = [line["points"] for line in report["rounds"] if line["line"] == "round-N"]
    if not points:
        return []
    if len(points[0]) == 2:
        if report["headline"] and report["headline"]["effect"] == "better":
            return ["One round was run; a second shows whether the gain goes on."]
        return ["No gain is shown after the one round: mend that before you run more rounds."]
    before, last = points[0][-2:]
    more = f"The last round changed the joint system by {signed(last['value'] - before['value'])}"
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


def _about_lengths(report: Report) -> list[str]:
    """Say whether DPO can learn a length instead of a content, and what to do."""
    said = []
    limit = report["options"]["all"].get("expand.candidates.max_new_tokens", "of tokens")
    for audit in report["pair_audits"]:
        cut = audit["chosen_cut_percent"]
        if audit["length_p"] < CERTAIN:
            longer = audit["chosen_longer"] > audit["rejected_longer"]
            said.append(
                f"DPO can learn a length ({audit['label']}): chosen texts have "
                f"{audit['chosen_words']:.1f} words, rejected ones {audit['rejected_words']:.1f} "
                f"({'longer' if longer else 'shorter'}, p = {format_p(audit['length_p'])})."
            )
        if cut > MANY_CUT_PERCENT:
            said.append(
                f"{cut:.0f} % of the chosen texts ({audit['label']}) are cut at the limit of {limit} "
                "tokens: raise expand.candidates.max_new_tokens."
            )
    return said
