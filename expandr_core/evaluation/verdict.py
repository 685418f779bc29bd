"""A comparison in words: what helped, what hurt, what cannot be told, and which system is best."""

from collections import defaultdict
from typing import Any, NamedTuple

from expandr_core.evaluation.comparison import titles_of
from expandr_core.evaluation.metrics import MEASURES
from expandr_core.evaluation.render import counted, format_p, signed
from expandr_core.evaluation.significance import fewest_to_tell
from expandr_core.options.base import Options, added

NAMED = 5  # so many datasets at most are named
_ON = {
    "better": "significantly better",
    "worse": "significantly worse",
    "unclear": "no difference shown",
    "equal": "equal on every query",
    "too few": "too few queries to tell",
}


class Kept(Options):
    """The models that are kept, chosen on other data than this.

    `expanded` and `alone` name the systems that search with them, with an expansion and without;
    `reason` says why they are kept, in a sentence. `distilled` names the system that searches with their
    distilled query encoder, if there is one.
    """

    expanded: str
    alone: str
    reason: str
    distilled: str = added("")


class Verdict(NamedTuple):
    """What a comparison says.

    Attributes:
        sentences: in words, for people.
        expand: whether the kept models search better with an expansion; None if none are kept.
    """

    sentences: list[str]
    expand: bool | None


def verdict(comparison: dict[str, Any]) -> Verdict:
    """Say what a comparison has shown.

    Args:
        comparison: comparison.json, but for the verdict. If models are kept, it is about them, else
            about every system that has a baseline.

    >>> systems = [{"name": "query", "title": "query only", "baseline": ""},
    ...            {"name": "joint", "title": "joint round 1", "baseline": "query"}]
    >>> contrast = {"dataset": "test", "before": "query", "after": "joint", "effect": "worse",
    ...             "difference": -0.025, "corrected_p": 0.01, "clusters": 50}
    >>> scores = [{"system": "query", "dataset": "test", "ndcg_at_10": 0.951},
    ...           {"system": "joint", "dataset": "test", "ndcg_at_10": 0.926}]
    >>> kept = {"expanded": "joint", "alone": "query", "reason": "Round 1 is kept."}
    >>> comparison = {"metric": "ndcg_at_10", "systems": systems, "datasets": [{"name": "test"}],
    ...               "results": scores, "contrasts": [contrast], "significance_level": 0.05,
    ...               "test": "t", "kept": kept}
    >>> for sentence in verdict(comparison).sentences:
    ...     print(sentence)
    Round 1 is kept.
    On this data these expansions hurt: query only 0.951, joint round 1 0.926 (−0.025, p = 0.010).
    The best system is query only with nDCG@10 0.951.
    """
    kept, several, scores = comparison["kept"], len(comparison["datasets"]) > 1, _scores(comparison)
    expand = scores[kept["expanded"]] >= scores[kept["alone"]] if kept else None
    sentences = [kept["reason"]] if kept else []
    if "subsets_are" in comparison:
        return Verdict([*sentences, *_by_baseline(comparison), *_best(comparison, several)], expand)
    for system in comparison["systems"]:
        contrasts = _with_baseline(comparison, system)
        if contrasts and (kept is None or system["name"] == kept["expanded"]):
            if several:
                sentences.append(_effects(comparison, contrasts))
            else:
                sentences.append(_effect(comparison, system, contrasts[0]))
    sentences += [] if several else _at_search(comparison)
    sentences += _against_bm25(comparison, several)
    sentences += _best(comparison, several)
    return Verdict(sentences, expand)


def _scores(comparison: dict[str, Any]) -> dict[str, float]:
    """Return each system's mean over the datasets."""
    by_system: defaultdict[str, list[float]] = defaultdict(list)
    for row in comparison["results"]:
        by_system[row["system"]].append(row[comparison["metric"]])
    return {system: sum(scores) / len(scores) for system, scores in by_system.items()}


def _with_baseline(comparison: dict[str, Any], system: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the contrasts of a system with its baseline, one per dataset."""
    pair = system["baseline"], system["name"]
    return [each for each in comparison["contrasts"] if (each["before"], each["after"]) == pair]


def _effect(comparison: dict[str, Any], system: dict[str, Any], contrast: dict[str, Any]) -> str:
    """Say how a system differs from its baseline on the one dataset.

    Of a retriever that was trained, this is not the effect of expansions alone.
    """
    scores, titles, kept = _scores(comparison), titles_of(comparison), comparison["kept"]
    before, after = system["baseline"], system["name"]
    least = fewest_to_tell(comparison["significance_level"], comparison["test"])
    who = "the trained models" if kept and kept["alone"] != before else "these expansions"
    what = {
        "better": f"On this data {f'{who} help' if kept else f'{titles[after]} is better'}",
        "worse": f"On this data {f'{who} hurt' if kept else f'{titles[after]} is worse'}",
        "unclear": "On this data no difference is shown",
        "equal": "On this data the two are equal on every query",
        "too few": f"{counted(contrast['clusters'], 'observation is', 'observations are')} too few to "
        f"tell (at least {least})",
    }
    return (
        f"{what[contrast['effect']]}: {titles[before]} {scores[before]:.3f}, {titles[after]} "
        f"{scores[after]:.3f} {_by(contrast)}."
    )


def _at_search(comparison: dict[str, Any]) -> list[str]:
    """Say what expansions bring the kept retriever at search, unless that is the effect already."""
    kept, scores = comparison["kept"], _scores(comparison)
    baselines = {each["name"]: each["baseline"] for each in comparison["systems"]}
    if not kept or kept["alone"] == baselines[kept["expanded"]]:
        return []
    asked = {"name": kept["expanded"], "baseline": kept["alone"]}
    tests = _with_baseline(comparison, asked)
    effect = tests[0]["effect"] if tests else ""
    what = {"better": "add to that", "worse": "take from that", "": "were not tested by themselves"}
    return [
        f"Expansions at search {what.get(effect, 'are not shown to change that')}: "
        f"{scores[kept['alone']]:.3f} without, {scores[kept['expanded']]:.3f} with"
        f"{' ' + _by(tests[0]) if tests else ''}."
    ]


def _against_bm25(comparison: dict[str, Any], several: bool) -> list[str]:
    """Say how systems differ from BM25, with RM3 or not, where that was asked."""
    scores, titles = _scores(comparison), titles_of(comparison)
    asked: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for each in comparison["contrasts"]:
        if each["before"].startswith("bm25"):
            asked.setdefault((each["before"], each["after"]), []).append(each)
    if several:
        return [_effects(comparison, contrasts) for contrasts in asked.values()]
    return [
        f"Against {titles[before]} ({scores[before]:.3f}), {titles[after]}: {_ON[test['effect']]} "
        f"{_by(test)}."
        for (before, after), [test] in asked.items()
    ]


def _effects(comparison: dict[str, Any], contrasts: list[dict[str, Any]]) -> str:
    """Say on which datasets a system differs from another."""
    titles = titles_of(comparison)
    phrases: list[str] = []
    for effect, what in _ON.items():
        datasets = [each["dataset"] for each in contrasts if each["effect"] == effect]
        if datasets:
            number = (
                str(len(datasets)) if phrases else f"{len(datasets)} of {len(contrasts)} datasets"
            )
            named = f" ({', '.join(datasets)})" if len(datasets) <= NAMED else ""
            phrases.append(f"{what} on {number}{named}")
    pair = f"{titles[contrasts[0]['after']]} against {titles[contrasts[0]['before']]}"
    return f"{pair}: {', '.join(phrases)}."


def _by_baseline(comparison: dict[str, Any]) -> list[str]:
    """Say of each baseline which systems are better or worse, where systems are variants of it."""
    titles, sentences = titles_of(comparison), []
    for baseline in dict.fromkeys(each["baseline"] for each in comparison["systems"]):
        own = [each for each in comparison["systems"] if baseline and each["baseline"] == baseline]
        effects = {
            each["name"]: contrast["effect"]
            for each in own
            for contrast in _with_baseline(comparison, each)
        }
        phrases = [
            f"{what}: {', '.join(titles[name] for name, found in effects.items() if found == effect)}"
            for effect, what in _ON.items()
            if effect in effects.values()
        ]
        if phrases:
            sentences.append(f"Against {titles[baseline]}, {'; '.join(phrases)}.")
    return sentences


def _best(comparison: dict[str, Any], several: bool) -> list[str]:
    """Name the system that is best: on the dataset, or in each benchmark's mean."""
    metric, titles = comparison["metric"], titles_of(comparison)
    said = f"with {MEASURES[metric].title}"
    if not several:
        return [_best_of_one(comparison)]
    sentences = []
    whole = [mean for mean in comparison["means"] if mean["scope"] == "all"]
    for title in dict.fromkeys(mean["title"] for mean in whole):
        best = max((m for m in whole if m["title"] == title), key=lambda mean: mean[metric])
        system = titles[best["system"]]
        sentences.append(
            f"The best system by the mean ({title}) is {system} {said} {best[metric]:.3f}."
        )
    return sentences


def _best_of_one(comparison: dict[str, Any]) -> str:
    """Name the best system of the one dataset, and whether its lead over the baseline is shown.

    If nothing is shown to beat the one baseline that there is, that is what is said.
    """
    metric, titles, scores = comparison["metric"], titles_of(comparison), _scores(comparison)
    title = MEASURES[metric].title
    name = max(scores, key=lambda each: scores[each])
    system = next(each for each in comparison["systems"] if each["name"] == name)
    lead = f"{titles[name]} with {title} {scores[name]:.3f}"
    baselines = {each["baseline"] for each in comparison["systems"]} - {""}
    own = next(iter(_with_baseline(comparison, system)), None)
    if name in baselines and own is None:
        return f"The best system is {lead}."
    known = {*baselines, *(kept["expanded"] for kept in [comparison["kept"]] if kept)}
    pairs = [{each["before"], each["after"]} for each in comparison["contrasts"]]
    tested = any(name in pair and pair & known - {name} for pair in pairs)
    other = titles[next(iter(baselines))] if len(baselines) == 1 else "a baseline"
    how = _by(own) if own else "" if tested else f"which no test compares with {other}"
    against = [each for each in comparison["contrasts"] if each["before"] in baselines]
    if len(baselines) != 1 or any(each["effect"] == "better" for each in against):
        known = {"better": "", "unclear": "; its lead is not shown to be more than chance"}
        if own is None:
            return f"The best system is {lead}{', ' if how else ''}{how}."
        return f"The best system is {lead}{known.get(own['effect'], '; its lead is not shown')}."
    [baseline] = baselines
    higher = sum(score > scores[baseline] for score in scores.values())
    return (
        f"No system is shown to be better than {titles[baseline]} ({scores[baseline]:.3f}); "
        f"{higher} {'scores' if higher == 1 else 'score'} higher, at best {lead}"
        f"{' ' if own else ', ' if how else ''}{how}."
    )


def _by(contrast: dict[str, Any]) -> str:
    """Write by how much systems differ, and whether that is chance; equal ones are not tested."""
    if contrast["effect"] == "equal":
        return "(not tested)"
    return f"({signed(contrast['difference'])}, p = {format_p(contrast['corrected_p'])})"
