"""The pictures of a report, each with the caption that says what to see."""

from typing import Any, NamedTuple

from expandr_core.reports.drawing import drawing
from expandr_core.reports.palette import FAMILIES, LIGHT, SERIES, STYLES, looks_of

Report = dict[str, Any]
_MOST = 8  # groups or curves of one picture
_WIDE = 20  # range of a curve from which on its axis is logarithmic
_LINES = ("round-N", "round-N-greedy", "aligned-N", "control-aligned-N", "round-N-query")


class Picture(NamedTuple):
    """A picture.

    Attributes:
        svg: to put into a page.
        caption: what it shows, and of how many.
    """

    svg: str
    caption: str


def figures_of(report: Report) -> dict[str, Picture]:
    """Draw everything that a report has the numbers for, by name."""
    found: dict[str, Picture | None] = {
        "systems": _systems(report),
        "datasets": _datasets(report),
        "rounds": _rounds(report),
        "queries": _queries(report),
        "similarity": _similarity(report),
    }
    for name, title, x, unit in (
        ("rewards", "Rewards of all candidates", "reward", "candidates"),
        ("margins", "Margins of the pairs", "reward of chosen minus rejected", "pairs"),
        ("pair_words", "Lengths in the pairs", "words", "texts"),
        ("tokens", "Lengths of the expansions", "tokens", "expansions"),
    ):
        histogram = report["distributions"].get(name)
        found[name] = histogram and _histogram(name, title, x, unit, histogram)
    for kind, measure, y in (
        ("LLM", "loss", "loss (nats)"),
        ("LLM", "rewards/margins", "margin of implicit rewards"),
        ("LLM", "rewards/accuracies", "training pairs ranked rightly"),
        ("LLM", "kl", "divergence from the start (nats)"),
        ("retriever", "loss", "contrastive loss (nats)"),
        ("retriever", "dev_ndcg_at_10", "nDCG@10 on dev examples"),
        ("student", "loss", "loss of the distilled encoder"),
    ):
        name = f"curve-{kind}-{measure}".lower().replace("/", "-").replace("_", "-")
        found[name] = _curves(report, name, kind, measure, y)
    found["cost"] = _cost(report)
    return {name: picture for name, picture in found.items() if picture}


def _colour(family: str) -> str:
    return LIGHT[FAMILIES[family]]


def _systems(report: Report) -> Picture | None:
    """Draw each system's result with its interval, the best on top; for one dataset."""
    rows, metric = report["systems"], report["metric_title"]
    if len({row["dataset"] for row in rows}) != 1:
        return None
    rows = sorted(rows, key=lambda row: row[report["metric"]])
    clusters, n = rows[0]["clusters"], f"n = {rows[0]['queries']} queries"
    n += "" if clusters == rows[0]["queries"] else f" in {clusters} clusters"
    with drawing("systems", f"{metric} of all systems", n, 0.7 + 0.2 * len(rows)) as made:
        axes = made.axes(f"{metric} ({n})", "", grid="x")
        for place, row in enumerate(rows):
            value, colour = row[report["metric"]], _colour(row["family"])
            if row["low"] is not None:
                axes.plot([row["low"], row["high"]], [place] * 2, color=colour, linewidth=2)
            axes.plot([value], [place], "o", color=colour, markersize=4.5)
        axes.set_yticks(range(len(rows)), [_short(row["title"], 36) for row in rows])
        axes.tick_params(axis="y", length=0, labelcolor=LIGHT["ink"])
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.set_xlim(left=0)
        axes.spines["left"].set_visible(False)
    families = ", ".join(f"{name} {colour}" for name, colour in FAMILIES.items())
    return Picture(
        made.svg,
        f"{metric} of every system with {report['confidence_percent']} % intervals, the best on top; "
        f"{n}. Colours: {families.replace('muted', 'grey')}.",
    )


def _datasets(report: Report) -> Picture | None:
    """Draw the differences from the baselines, by dataset, if there are several."""
    datasets = list(dict.fromkeys(row["dataset"] for row in report["systems"]))
    own = {(row["dataset"], row["system"], row["against"]) for row in report["systems"]}
    tests = [t for t in report["tests"] if (t["dataset"], t["after"], t["before_title"]) in own]
    systems = list(dict.fromkeys(test["after"] for test in tests))
    if len(datasets) < 2 or not tests:
        return None
    metric = report["metric_title"]
    height = 1.1 + 0.2 * len(datasets) * max(1, len(systems) * 0.7)
    with drawing(
        "datasets", "Differences by dataset", f"of {len(datasets)} datasets", height
    ) as made:
        axes = made.axes(f"difference in {metric} from the baseline", "", grid="x")
        for number, system in enumerate(systems):
            colour, label = LIGHT[SERIES[number % len(SERIES)]], None
            marker = "osD^"[number // len(SERIES) % 4]
            for test in (test for test in tests if test["after"] == system):
                place = len(datasets) - datasets.index(test["dataset"])
                place += 0.3 - 0.6 * (number + 0.5) / len(systems)
                label = None if label else _short(test["after_title"], 30)
                if test["low"] is not None:
                    axes.plot([test["low"], test["high"]], [place] * 2, color=colour)
                value = [test["difference"]]
                axes.plot(value, [place], marker, color=colour, markersize=4, label=label)
                label = "_"
        axes.axvline(0, color=LIGHT["muted"], linewidth=0.8)
        axes.set_yticks([len(datasets) - n for n in range(len(datasets))], datasets)
        axes.set_ylim(0.45, len(datasets) + 0.55)
        axes.tick_params(axis="y", length=0, labelcolor=LIGHT["ink"])
        made.figure.legend(loc="outside upper left", ncols=2)
    return Picture(
        made.svg,
        f"Change in {metric} against the baseline on each of n = {len(datasets)} datasets, with "
        f"{report['confidence_percent']} % intervals; right of 0 is better.",
    )


def _rounds(report: Report) -> Picture | None:
    lines = [line for name in _LINES for line in report["rounds"] if line["line"] == name]
    lines = [line for line in lines if len(line["points"]) > 1]
    if not lines:
        return None
    metric, queries = report["metric_title"], report["systems"][0]["queries"]
    with drawing("rounds", f"{metric} by round", f"of {queries} queries", 3.3) as made:
        axes = made.axes("round (0: before any training)", f"{metric} (n = {queries} queries)")
        seen: dict[str, int] = {}
        for number, line in enumerate(lines):
            points, colour = line["points"], _colour(line["family"])
            style = STYLES[seen.setdefault(line["family"], 0) % len(STYLES)]
            seen[line["family"]] += 1
            rounds = [point["round"] + 0.03 * (number - len(lines) / 2) for point in points]
            values = [point["value"] for point in points]
            label = _short(line["title"], 34)
            axes.plot(rounds, values, style, marker="o", markersize=4, color=colour, label=label)
            for x, point in zip(rounds, points, strict=True):
                if point["low"] is not None:
                    axes.plot([x] * 2, [point["low"], point["high"]], color=colour, linewidth=1)
        axes.set_xticks(sorted({point["round"] for line in lines for point in line["points"]}))
        axes.set_ylim(bottom=0)
        made.figure.legend(loc="outside upper left", ncols=2)
    return Picture(
        made.svg,
        f"{metric} after each round, with {report['confidence_percent']} % intervals; round 0 is the "
        f"start, before any training. n = {queries} queries.",
    )


def _queries(report: Report) -> Picture | None:
    """Draw the change of every query, the largest gain first."""
    queries = report["queries"]
    if "unavailable" in queries:
        return None
    metric, n = report["metric_title"], queries["queries"]
    places = [place for place, _ in queries["curve"]]
    changes = [change for _, change in queries["curve"]]
    with drawing("queries", "Change of every query", f"of {n} queries") as made:
        axes = made.axes(f"queries, the largest gain first (n = {n})", f"change in {metric}")
        for colour, shown in (("green", [max(c, 0) for c in changes]),
                              ("red", [min(c, 0) for c in changes])):  # fmt: skip
            axes.fill_between(
                places, shown, step="mid", color=LIGHT[colour], alpha=0.75, linewidth=0
            )
        axes.axhline(0, color=LIGHT["muted"], linewidth=0.8)
        axes.set_xlim(1, n)
        axes.margins(y=0.12)
        box = {"transform": axes.transAxes, "fontsize": 8.5}
        axes.text(0.98, 0.95, f"{queries['wins']} won", ha="right", color=LIGHT["green"], **box)
        axes.text(
            0.98, 0.87, f"{queries['ties']} unchanged", ha="right", color=LIGHT["muted"], **box
        )
        axes.text(0.98, 0.79, f"{queries['losses']} lost", ha="right", color=LIGHT["red"], **box)
    return Picture(
        made.svg,
        f"Change in {metric} of each of {n} queries, from {queries['before_title']} to "
        f"{queries['after_title']}: above 0 it is won, below lost.",
    )


def _similarity(report: Report) -> Picture | None:
    similarity = report["similarity"]
    if "unavailable" in similarity:
        return None
    titles = {each["system"]: each["title"] for each in similarity["systems"]}
    histogram = similarity["histogram"]
    named = [group | {"name": titles[group["name"]]} for group in histogram["groups"]]
    return _histogram(
        "similarity",
        "Similarity to the relevant passage",
        "similarity of the search vector to the best relevant passage",
        "queries",
        histogram | {"groups": named},
    )


def _histogram(name: str, title: str, x: str, unit: str, found: Report) -> Picture | None:
    """Draw groups as outlines over the same bins, as shares, with their means."""
    groups = found["groups"][:_MOST]
    if not groups:
        return None
    rest = "" if len(groups) == len(found["groups"]) else " Not all groups are drawn."
    long = max(len(group["name"]) for group in groups) > 18
    height = 2.7 + 0.14 * len(groups) / (1 if long else 2)
    sizes = sorted({group["n"] for group in groups})
    n = "n = " + " to ".join(f"{size:,}" for size in dict.fromkeys((sizes[0], sizes[-1])))
    least = found["edges"][0]
    if all(group["counts"][0] == group["n"] and group["mean"] == least for group in groups):
        return Picture("", f"{title} are all equal: {least:g} ({x}; {n} {unit}).")
    with drawing(name, title, f"{n} {unit}", height) as made:
        axes = made.axes(f"{x} ({n})", f"share of {unit}")
        looks = looks_of([group["name"] for group in groups])
        for group, (colour, style) in zip(groups, looks, strict=True):
            shares = [count / group["n"] for count in group["counts"]]
            label = f"{_short(group['name'], 30)} (mean {group['mean']:#.3g})"
            axes.stairs(
                shares, found["edges"], color=colour, linewidth=1.5, linestyle=style, label=label
            )
            axes.axvline(group["mean"], color=colour, linewidth=0.9, linestyle=(0, (3, 2)))
        axes.set_ylim(bottom=0)
        made.figure.legend(loc="outside upper left", ncols=1 if long else 2)
    each = " in each group" if len(groups) > 1 else ""
    return Picture(made.svg, f"{title}; {n} {unit}{each}; means are dashed.{rest}")


def _curves(report: Report, name: str, kind: str, measure: str, y: str) -> Picture | None:
    curves = [c for c in report["curves"] if c["kind"] == kind and measure in c["measures"]]
    if not curves:
        return None
    rest = "" if len(curves) <= _MOST else " Not all are drawn."
    curves = curves[:_MOST]
    long = max(len(curve["title"]) for curve in curves) > 26
    height = 2.7 + 0.14 * len(curves) / (1 if long else 2)
    steps = max(curve["steps"] for curve in curves)
    trainings = "1 training" if len(curves) == 1 else f"{len(curves)} trainings"
    with drawing(name, f"{y} by step", f"of {trainings}", height) as made:
        axes = made.axes(f"step (n = {steps} at most)", y)
        looks = looks_of([curve["title"] for curve in curves])
        for curve, (colour, style) in zip(curves, looks, strict=True):
            points = curve["measures"][measure]
            axes.plot(*zip(*points, strict=True), style, color=colour,
                      label=_short(curve["title"], 60))  # fmt: skip
        values = [value for c in curves for _, value in c["measures"][measure]]
        if min(values) > 0 and max(values) > _WIDE * min(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
        made.figure.legend(loc="outside upper left", ncols=1 if long else 2)
    return Picture(made.svg, f"{y[0].upper()}{y[1:]} by step, in {trainings} of the {kind}.{rest}")


def _cost(report: Report) -> Picture | None:
    rows = sorted(report["cost"]["stages"], key=lambda row: row["seconds"])[-12:]
    if not rows:
        return None
    whole = report["cost"]["total"]["artifacts"]
    most = "" if len(rows) == len(report["cost"]["stages"]) else f", the {len(rows)} longest"
    with drawing(
        "cost", "Seconds by stage", f"of {whole} artifacts", 0.7 + 0.22 * len(rows)
    ) as made:
        axes = made.axes(f"seconds (n = {whole} artifacts)", "", grid="x")
        axes.barh(
            range(len(rows)), [row["seconds"] for row in rows], color=LIGHT["blue"], height=0.6
        )
        axes.set_yticks(range(len(rows)), [row["title"] for row in rows])
        axes.tick_params(axis="y", length=0, labelcolor=LIGHT["ink"])
    return Picture(
        made.svg, f"Where the time goes: seconds of all {whole} artifacts by stage{most}."
    )


def _short(text: str, length: int) -> str:
    """Cut a text in the middle, as titles differ at their ends.

    >>> _short("a red bird sings", 9)
    'a re…ings'
    """
    half = (length - 1) // 2
    return text if len(text) <= length else text[:half] + "…" + text[-half:]
