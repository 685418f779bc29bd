"""What a run cannot say; it follows from the facts of its report."""

from typing import Any

from expandr_core.evaluation.metrics import MEASURES
from expandr_core.evaluation.render import counted, signed

Report = dict[str, Any]
FEW_CLUSTERS = 30
MANY_LEAKED = 0.1  # of the queries: the verdict tells it too
_ROLES = {"llm": "texts were written by {}", "retriever": "searches began with {}"}


def limits_of(report: Report) -> list[str]:
    """Return sentences about what the numbers do not show, from the rest of the report."""
    said = [*leaks_of(report), *_about_models(report), *_about_data(report)]
    said += [*_about_chance(report), *_about_choice(report), *_about_unknown(report)]
    return [*said, *_about_code(report), *(f"{each}." for each in report["warnings"])]


def _about_models(report: Report) -> list[str]:
    built = [
        each
        for role in _ROLES
        for each in report["models"]
        if each["built"] and each["role"] == role
    ]
    if not built:
        return []
    named = " and ".join(dict.fromkeys(_ROLES[each["role"]].format(each["name"]) for each in built))
    both = "both " if len({each["role"] for each in built}) > 1 else ""
    return [
        f"{named[0].upper()}{named[1:]}, {both}built from the collection's own texts: this tests the "
        "pipeline, not what the method brings with models of usual size."
    ]


def _about_data(report: Report) -> list[str]:
    said = []
    sources = {step["stage"] for step in report["cost"]["stages"]}
    if "demo_world" in sources:
        said.append("The world is synthetic: the numbers do not tell what real collections reach.")
    if len({row["dataset"] for row in report["systems"]}) == 1:
        passages = max((row["passages"] or 0 for row in report["datasets"]), default=0)
        size = f" of {passages:,.0f} passages" if passages else ""
        more = (
            "; scores of a corpus of another size cannot be compared with these" if passages else ""
        )
        said.append(
            f"One collection{size} was measured: nothing is known of other domains or languages{more}."
        )
    said.append(
        "Passages that nobody judged count as not relevant, so a system that finds other good passages "
        "is undervalued."
    )
    return said


def _about_chance(report: Report) -> list[str]:
    said, tests = [], [each for each in report["tests"] if each["counted"]]
    row = report["headline"] or (report["systems"][0] if report["systems"] else None)
    if row and row["clusters"] < FEW_CLUSTERS:
        kind = row.get("test_title", report["test_title"])
        said.append(
            f"There {'is' if row['clusters'] == 1 else 'are'} only "
            f"{counted(row['clusters'], 'independent observation')} for the {kind}: small differences "
            "cannot be told from chance."
        )
    head = report["headline"]
    if head and head["low"] is not None:
        said.append(
            f"The difference between {head['before_title']} and {head['after_title']} is known to about "
            f"±{(head['high'] - head['low']) / 2:.3f} {MEASURES[report['metric']].title}; other "
            "differences have intervals of their own."
        )
    if report["seeds"] == 1:
        said.append(
            f"Everything was made once, with seed {report['run']['seed']}. Intervals and p-values "
            "are about other queries, not other seeds, which can change the order of close systems."
        )
    unclear = [each for each in tests if each["effect"] in ("unclear", "too few")]
    if unclear:
        said.append(
            f"{len(unclear)} of {len(tests)} tests show no difference. That does not prove that systems "
            "are equal; and scores of systems that no test compares may differ by chance."
        )
    return said


def _about_choice(report: Report) -> list[str]:
    if not report["kept"]:
        return ["No models were chosen: the best of many systems looks better than it is."]
    said, dev = [], report["dev"]
    rounds = max(
        (point["round"] for line in report["rounds"] for point in line["points"]), default=0
    )
    if dev:
        scores = ", ".join(
            f"{'the start' if row['title'] == 'round 0' else row['title']} {row['value']:.3f}"
            for row in dev
        )
        chosen = "Which round is kept" if rounds > 1 else "Whether round 1 is kept"
        said.append(
            f"{chosen} was decided on {counted(dev[0]['queries'], 'dev query', 'dev queries')} "
            f"({scores}); others may decide otherwise."
        )
    if any(each["dataset"] == "dev" for each in report["datasets"]):
        said.append(
            "The reported queries are those that the round was chosen on: it looks too good."
        )
    return said


def leaks_of(report: Report, share: float = 0.0) -> list[str]:
    """Say what is left of a gain without leaked queries, if these are more than a share of all."""
    said, head = [], report["headline"]["after"] if report["headline"] else ""
    for audit in sorted(report["leakage"], key=lambda each: each["system"] != head):
        marked = audit["any"]
        if marked["queries"] > share * audit["queries"]:
            without = marked["gain_without"]
            left, gain = signed(without), signed(audit["gain"])
            rest = "the same" if left == gain else f"{left}, not {gain}"
            rest = (
                "none is left without them"
                if without is None
                else f"without them the gain is {rest}"
            )
            said.append(
                f"Of {counted(audit['queries'], 'query', 'queries')} {marked['queries']} may be leaked "
                f"for {audit['title']} on {audit['dataset']}: {rest}."
            )
            break
    return said


def _about_unknown(report: Report) -> list[str]:
    said = []
    if not report["leakage"]:
        said.append("Nothing was audited for leakage of test data into the training or the texts.")
    writers = [each for each in report["models"] if each["role"] == "llm"]
    foreign = dict.fromkeys(each["name"] for each in writers if not each["built"])
    if foreign or not writers:
        said.append(
            f"What {' and '.join(foreign) or 'the language model'} read in its pretraining is unknown; "
            "it may have seen these texts."
        )
    elif "demo_world" not in {step["stage"] for step in report["cost"]["stages"]}:
        said.append(
            "The LLM learned to write from the texts of the collection, which are also those that are "
            "searched."
        )
    return said


def _about_code(report: Report) -> list[str]:
    commits = report["code"].get("commits", [])
    dirty = any(each.endswith("-dirty") for each in commits)
    if len(commits) < 2 and not dirty:
        return []
    several = f"code of {len(commits)} commits" if len(commits) > 1 else "one commit's code"
    partly = ", partly changed and not committed" if dirty else ""
    return [
        f"It was made by {several}{partly}: no one version of the code is known to give the same again."
    ]
