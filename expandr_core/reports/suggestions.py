"""What the numbers of a run suggest to try; it follows from the facts of its report."""

from typing import Any

from expandr_core.evaluation.render import counted, format_p, signed
from expandr_core.preferences.audit import CERTAIN

Report = dict[str, Any]
MANY_CUT_PERCENT = 20.0
LISTED = 5  # so many examples at most


def suggestions_of(report: Report) -> list[str]:
    """Return what the numbers suggest to try next."""
    said = [*_about_control(report), *_about_best(report), *_about_losses(report)]
    said += [*_about_rounds(report), *_about_lengths(report)]
    if report["seeds"] == 1:
        said.append("Repeat the run with other seeds before you rely on a close comparison.")
    return said


def _about_control(report: Report) -> list[str]:
    """Say if training without expansions gains as much."""
    head = report["headline"]
    if not head or head["effect"] != "better":
        return []
    tests = {(each["before"], each["after"]): each for each in report["tests"]}
    control = tests.get((head["before"], "control"))
    beyond = tests.get(("control", head["after"]))
    if not control or not beyond or beyond["effect"] == "better":
        return []
    title = control["after_title"]
    return [
        f"The {title}{',' if ',' in title else ''} changes {head['before_title']} by "
        f"{signed(control['difference'])}; what expansions add beyond that, "
        f"{signed(beyond['difference'])}, is not shown to help: do without, or use a better LLM."
    ]


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
    several = len({row["dataset"] for row in report["systems"]}) > 1
    found: dict[tuple[str, bool], list[str]] = {}
    for test in report["tests"]:
        if test["effect"] == "worse":
            added = expands[test["after"]] and not expands[test["before"]]
            place = f" on {test['dataset']}" if several else ""
            worse = f"{test['after_title']}{place} ({signed(test['difference'])})"
            found.setdefault((test["before_title"], added), []).append(worse)
    said = [
        f"Worse than {before}: {_few(worse)}. "
        + (
            "Search without expansions, or have better ones written: by another LLM or prompt, or "
            "give them less weight."
            if added
            else f"Keep {before}."
        )
        for (before, added), worse in found.items()
    ]
    queries = report["queries"]
    if "unavailable" not in queries and queries["worst"]:
        start = (
            "" if said else "No system is shown to be worse than what it is tested against, but "
        )
        said.append(
            f"{start}{queries['losses']} of {counted(queries['queries'], 'query', 'queries')} get "
            f"worse with {queries['after_title']}, at worst by "
            f"{signed(queries['worst'][0]['difference'])}."
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
    gain = signed(last["value"] - before["value"])
    more = f"On test the last round changed the joint system by {gain}"
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
    """Say whether texts are cut, and whether DPO can learn a length instead of a content."""
    said, audits = [], report["pair_audits"]
    options, written = report["options"]["all"], report["written"]
    limit = options.get("expand.candidates.max_new_tokens", "new")
    if 100 * written["truncated"] > MANY_CUT_PERCENT * written["texts"]:
        said.append(
            f"{written['truncated']:,} of {written['texts']:,} expansions are cut at the limit of "
            f"{options.get('expand.expansion.max_new_tokens', 'new')} tokens: raise "
            "expand.expansion.max_new_tokens, or ask for shorter texts."
        )
    biased = [
        f"{audit['chosen_words']:.1f} and {audit['rejected_words']:.1f} "
        f"({audit['label']}, p = {format_p(audit['length_p'])})"
        for audit in audits
        if audit["length_p"] < CERTAIN
    ]
    if biased:
        said.append(
            "The LLM can learn a length instead of a content: the chosen and rejected texts have, in "
            f"words, {_few(biased)}."
        )
    cut = [
        f"{audit['chosen_cut_percent']:.0f} % ({audit['label']})"
        for audit in audits
        if audit["chosen_cut_percent"] > MANY_CUT_PERCENT
    ]
    if cut:
        said.append(
            f"Many of the chosen texts are cut at the limit of {limit} tokens, {_few(cut)}: raise "
            "expand.candidates.max_new_tokens."
        )
    return said


def _few(parts: list[str]) -> str:
    """List some of many.

    >>> _few(list("abcdefgh"))
    'a, b, c, d, e, and 3 more'
    """
    more = f", and {len(parts) - LISTED} more" if len(parts) > LISTED else ""
    return ", ".join(parts[:LISTED]) + more
