"""A comparison in words: what helped, what hurt, what cannot be told, and which system is best."""

from collections import defaultdict
from typing import Any, NamedTuple

from expandr_core.evaluation.comparison import titles_of
from expandr_core.evaluation.metrics import MEASURES
from expandr_core.evaluation.render import format_p, signed
from expandr_core.evaluation.significance import fewest_to_tell
from expandr_core.options.base import Options, added

NAMED = 5  # so many datasets at most are named
_ON = {
    "better": "significantly better",
    "worse": "significantly worse",
    "unclear": "no difference shown",
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
    ...               "kept": kept}
    >>> for sentence in verdict(comparison).sentences:
    ...     print(sentence)
    Round 1 is kept.
    On this data these expansions hurt: query only 0.951, joint round 1 0.926 (−0.025, p = 0.010).
    The best system is query only with nDCG@10 0.951.
    Without expansions the kept models reach 0.951, with them 0.926.
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
                sentences.append(_effects(comparison, system, contrasts))
            else:
                sentences.append(_effect(comparison, system, contrasts[0], expand))
    sentences += _best(comparison, several)
    if kept and not expand:
        sentences.append(
            f"Without expansions the kept models reach {scores[kept['alone']]:.3f}, with them "
            f"{scores[kept['expanded']]:.3f}."
        )
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


def _effect(
    comparison: dict[str, Any],
    system: dict[str, Any],
    contrast: dict[str, Any],
    expand: bool | None,
) -> str:
    """Say how a system differs from its baseline on the one dataset.

    A gain of models that search still better without expansions is not due to these.
    """
    scores, titles = _scores(comparison), titles_of(comparison)
    before, after = system["baseline"], system["name"]
    least = fewest_to_tell(comparison["significance_level"])
    better, worse = {
        None: (f"{titles[after]} is better", f"{titles[after]} is worse"),
        False: ("the trained models help", "these expansions hurt"),
        True: ("these expansions help", "these models hurt"),
    }[expand]
    what = {
        "better": f"On this data {better}",
        "worse": f"On this data {worse}",
        "unclear": "On this data no difference is shown",
        "too few": f"{contrast['clusters']} observations are too few to tell (at least {least})",
    }
    return (
        f"{what[contrast['effect']]}: {titles[before]} {scores[before]:.3f}, {titles[after]} "
        f"{scores[after]:.3f} {_by(contrast)}."
    )


def _effects(
    comparison: dict[str, Any], system: dict[str, Any], contrasts: list[dict[str, Any]]
) -> str:
    """Say on which datasets a system differs from its baseline."""
    titles = titles_of(comparison)
    phrases = []
    for effect, what in _ON.items():
        datasets = [each["dataset"] for each in contrasts if each["effect"] == effect]
        if datasets:
            number = (
                str(len(datasets)) if phrases else f"{len(datasets)} of {len(contrasts)} datasets"
            )
            named = f" ({', '.join(datasets)})" if len(datasets) <= NAMED else ""
            phrases.append(f"{what} on {number}{named}")
    pair = f"{titles[system['name']]} against {titles[system['baseline']]}"
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
    [system] = [each for each in comparison["systems"] if each["name"] == name]
    lead = f"{titles[name]} with {title} {scores[name]:.3f}"
    baselines = {each["baseline"] for each in comparison["systems"]} - {""}
    own = next(iter(_with_baseline(comparison, system)), None)
    if name in baselines and own is None:
        return f"The best system is {lead}."
    how = _by(own) if own else "which no test compares with a baseline"
    against = [each for each in comparison["contrasts"] if each["before"] in baselines]
    if len(baselines) != 1 or any(each["effect"] == "better" for each in against):
        known = {"better": "", "unclear": "; its lead is not shown to be more than chance"}
        if own is None:
            return f"The best system is {lead}, {how}."
        return f"The best system is {lead}{known.get(own['effect'], '; its lead is not shown')}."
    [baseline] = baselines
    higher = sum(score > scores[baseline] for score in scores.values())
    return (
        f"No system is shown to be better than {titles[baseline]} ({scores[baseline]:.3f}); "
        f"{higher} {'scores' if higher == 1 else 'score'} higher, at best {lead}"
        f"{' ' if own else ', '}{how}."
    )


def _by(contrast: dict[str, Any]) -> str:
    """Write by how much systems differ, and whether that is chance."""
    return f"({signed(contrast['difference'])}, p = {format_p(contrast['corrected_p'])})"
