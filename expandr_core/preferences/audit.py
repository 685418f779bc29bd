"""What preference pairs teach, measured before anything is trained on them.

A reward can be gamed: if the chosen text is nearly always the longer one, DPO learns to write longer.
So the audit compares chosen and rejected texts in length, in how much of the query they repeat, and in
how many were cut off; and the components of the reward with each other and with the length.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby, islice
from operator import itemgetter
from typing import Any

import numpy as np

from expandr_core.data.terms import count_words, terms
from expandr_core.preferences.rewards import COMPONENTS, names

BIN = 0.25  # width of the margins' bins; a margin is below the number of components
AGREEMENT_QUERIES = 2000  # enough for a mean within 0.01
CERTAIN = 0.01  # p of the sign test above which a preference for a length may be chance


@dataclass(frozen=True)
class Audit:
    """What the pairs of a round are like.

    Attributes:
        pairs: number of pairs.
        queries: number of rewarded queries.
        accepted: how many of these have an acceptable pair.
        chosen_words: mean length of the chosen texts, in words; also `rejected_words`.
        chosen_longer: pairs in which the chosen text has more words; also `rejected_longer`.
        length_p: probability of counts that unequal if length did not matter (sign test).
        chosen_overlap: mean share of the query's words that the chosen text repeats; also
            `rejected_overlap`.
        chosen_cut: chosen texts that were cut at max_new_tokens; also `rejected_cut`.
        agreement: Kendall's tau-b between the similarities of the reward's components among the
            candidates of a query, averaged over queries.
        length_agreement: the same between the reward and the number of words.
        margins: histogram of the margins: below 0.25, below 0.5, and so on.
    """

    pairs: int
    queries: int
    accepted: int
    chosen_words: float
    rejected_words: float
    chosen_longer: int
    rejected_longer: int
    length_p: float
    chosen_overlap: float
    rejected_overlap: float
    chosen_cut: int
    rejected_cut: int
    agreement: float
    length_agreement: float
    margins: tuple[int, ...]


def audit(
    pairs: list[dict[str, Any]], candidates: Iterable[dict[str, Any]], counts: Mapping[str, float]
) -> Audit:
    """Measure pairs and the candidates that they were chosen from.

    Args:
        pairs: rows of pairs.parquet, at least one.
        candidates: rows of rewards.parquet, grouped by query; read up to AGREEMENT_QUERIES queries.
        counts: the counts of the stage `pairs`.
    """
    words, overlap, cut = {}, {}, {}
    for side in ("chosen", "rejected"):
        words[side] = np.array([count_words(pair[f"{side}_text"]) for pair in pairs])
        overlap[side] = np.mean(
            [query_overlap(pair["query"], pair[f"{side}_text"]) for pair in pairs]
        )
        cut[side] = sum(pair[f"{side}_finish_reason"] == "length" for pair in pairs)
    longer = int((words["chosen"] > words["rejected"]).sum())
    shorter = int((words["chosen"] < words["rejected"]).sum())
    agreement, length_agreement = mean_agreements(candidates)
    bins = np.arange(0, len(COMPONENTS) + BIN / 2, BIN)
    return Audit(
        pairs=len(pairs),
        queries=int(counts["queries"]),
        accepted=int(counts["accepted"]),
        chosen_words=float(words["chosen"].mean()),
        rejected_words=float(words["rejected"].mean()),
        chosen_longer=longer,
        rejected_longer=shorter,
        length_p=sign_test(longer, shorter),
        chosen_overlap=float(overlap["chosen"]),
        rejected_overlap=float(overlap["rejected"]),
        chosen_cut=cut["chosen"],
        rejected_cut=cut["rejected"],
        agreement=agreement,
        length_agreement=length_agreement,
        margins=tuple(np.histogram([pair["margin"] for pair in pairs], bins)[0].tolist()),
    )


def query_overlap(query: str, text: str) -> float:
    """Return the share of the query's distinct words that the text repeats; 0 if it has no words.

    >>> query_overlap("Why is the sky blue?", "The sky scatters blue light.")  # the, sky, blue of 5
    0.6
    """
    asked, written = (set(terms(each.lower())) for each in (query, text))
    return len(asked & written) / len(asked) if asked else 0.0


def sign_test(one: int, other: int) -> float:
    """Return the probability of counts that unequal if both sides were equally likely.

    >>> sign_test(3, 0), sign_test(2, 2)  # three heads or three tails: 2 of 8
    (0.25, 1.0)
    """
    from scipy import stats

    return float(stats.binomtest(one, one + other).pvalue) if one + other else 1.0


def mean_agreements(candidates: Iterable[dict[str, Any]]) -> tuple[float, float]:
    """Average Kendall's tau-b over queries: between any two components, and of reward and length.

    A query whose candidates are all alike in one of the two counts as 0.

    >>> def row(text, positive, answer, reward):
    ...     return {"query_id": "q", "text": text, "retriever_similarity": positive,
    ...             "self_similarity": answer, "reward": reward}
    >>> mean_agreements([row("a b", 0.9, 0.8, 1.0), row("a", 0.5, 0.1, 0.5), row("", 0.1, 0.2, 0.1)])
    (0.33333333333333337, 1.0)
    """
    agreements, length_agreements = [], []
    by_query = groupby(candidates, key=itemgetter("query_id"))
    for _, group in islice(by_query, AGREEMENT_QUERIES):
        rows = list(group)
        similarities = [[row[f"{name}_similarity"] for row in rows] for name in names()]
        agreements += [_tau(*two) for two in combinations(similarities, 2)]
        words = [count_words(row["text"]) for row in rows]
        length_agreements.append(_tau([row["reward"] for row in rows], words))
    return float(np.mean(agreements)), float(np.mean(length_agreements))


def _tau(one: Sequence[float], other: Sequence[float]) -> float:
    from scipy import stats

    result: Any = stats.kendalltau(one, other)
    return float(np.nan_to_num(result.statistic))  # nan if one does not vary


def reason_to_stop(facts: Mapping[str, float], minimum_pairs: int, max_length_bias: float) -> str:
    """Say why nothing should be trained on the pairs; empty if they are fit for training.

    The pairs teach only length if both of these hold:

    1. The chosen text is the longer one, or the shorter one, in more than `max_length_bias` of the
       pairs (equal lengths count half), and the sign test rules out chance.
    2. Among all candidates, the reward agrees with the length at least as well as its components
       agree with each other: length alone would judge as well as either of them.

    Args:
        facts: the numbers of an `Audit`, by name.
        minimum_pairs: how many pairs a training needs.
        max_length_bias: see above; 1 never stops.

    >>> facts = {"pairs": 100, "chosen_longer": 96, "rejected_longer": 4, "length_p": 1e-20,
    ...          "length_agreement": 0.7, "agreement": 0.4}
    >>> print(reason_to_stop(facts, minimum_pairs=10, max_length_bias=0.9)[:61])
    the pairs teach only length: the chosen text is the longer in
    >>> reason_to_stop(facts | {"agreement": 0.8}, minimum_pairs=10, max_length_bias=0.9)
    ''
    """
    pairs = int(facts["pairs"])
    if pairs < minimum_pairs:
        return (
            f"there are {pairs} preference pairs and at least {minimum_pairs} are needed; "
            f"{_remedy_of_few(facts, minimum_pairs)}"
        )
    share = 0.5 + (facts["chosen_longer"] - facts["rejected_longer"]) / (2 * pairs)
    one_sided = max(share, 1 - share) > max_length_bias and facts["length_p"] < CERTAIN
    if one_sided and abs(facts["length_agreement"]) >= facts["agreement"]:
        which = "longer" if share > 0.5 else "shorter"
        return (
            f"the pairs teach only length: the chosen text is the {which} in "
            f"{max(share, 1 - share):.0%} of {pairs} pairs, and the reward agrees with the length "
            f"(tau {facts['length_agreement']:.2f}) at least as well as its components with each "
            f"other ({facts['agreement']:.2f}); let texts end by themselves "
            "(expand.candidates.max_new_tokens), use another retriever, or raise "
            "preferences.max_length_bias to continue anyway"
        )
    return ""


def _remedy_of_few(facts: Mapping[str, float], minimum_pairs: int) -> str:
    """Name the option that yields enough pairs; without one, ask for more queries."""
    if facts.get("accepted", 0) >= minimum_pairs:
        return f"raise preferences.max_pairs to {minimum_pairs} or more"
    possible = int(facts.get("with_preference", 0))
    if possible >= minimum_pairs:
        return (
            f"set preferences.acceptance to threshold and preferences.acceptance_value to -2, which "
            f"accepts {possible}, or lower preferences.minimum_pairs"
        )
    return f"give more queries, or lower preferences.minimum_pairs to {int(facts['pairs'])}"


def render(facts: Audit) -> str:
    """Write the audit as Markdown."""

    def share(count: int) -> str:
        return f"{count / facts.pairs:.0%}"

    bins = [
        f"| {k * BIN:.2f} to {(k + 1) * BIN:.2f} | {count} |"
        for k, count in enumerate(facts.margins)
    ]
    return "\n".join(
        [
            f"{facts.pairs} pairs; of {facts.queries} rewarded queries {facts.accepted} were accepted.",
            "",
            "| | chosen | rejected |",
            "|---|--:|--:|",
            f"| words | {facts.chosen_words:.1f} | {facts.rejected_words:.1f} |",
            f"| the longer of the two | {share(facts.chosen_longer)} | {share(facts.rejected_longer)} |",
            f"| query words repeated | {facts.chosen_overlap:.0%} | {facts.rejected_overlap:.0%} |",
            f"| cut at max_new_tokens | {share(facts.chosen_cut)} | {share(facts.rejected_cut)} |",
            "",
            f"Sign test of the lengths: p = {facts.length_p:.2g}.",
            "",
            "| agreement among the candidates of a query | Kendall's tau |",
            "|---|--:|",
            f"| the components of the reward | {facts.agreement:.2f} |",
            f"| reward and number of words | {facts.length_agreement:.2f} |",
            "",
            "| margin | pairs |",
            "|---|--:|",
            *bins,
            "",
        ]
    )
