"""What preference pairs teach, measured before anything is trained on them.

A reward can be gamed: if the chosen text is nearly always the longer one, DPO learns to write longer.
So the audit compares chosen and rejected texts in length, in how much of the query they repeat, and in
how many were cut off; and the components of the reward with each other and with the length.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, groupby, islice
from operator import itemgetter
from typing import Any

import numpy as np

from expandr_core.data.terms import count_words, terms
from expandr_core.options.preferences import ACCEPT_ALL
from expandr_core.preferences.pairs import RETRIEVAL, WORSE
from expandr_core.preferences.rewards import COMPONENTS, names

BIN = 0.25  # width of the margins' bins; a margin of ranks is below the number of components
BINS = round(len(COMPONENTS) / BIN)
NO_OPINION = 0.5  # agreement that a single component is held to
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
            candidates of a query, averaged over queries; 0.5 if there is one component alone, and None
            without candidates.
        length_agreement: the same between the reward and the number of words.
        margins: histogram of the margins that are known: below 0.25, below 0.5, and so on.
        bin: width of the histogram's bins, if another.
        retrieval: if it was measured, in the unit of the reward, the means by the query alone, with any
            candidate, and of the pairs with the chosen and with the rejected text; and the share of the
            candidates that beat the query.
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
    agreement: float | None
    length_agreement: float | None
    margins: tuple[int, ...]
    bin: float | None = None
    retrieval: dict[str, float] | None = None

    def facts(self) -> dict[str, Any]:
        """Return the numbers by name, without those that are None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def audit(
    pairs: list[dict[str, Any]],
    candidates: Iterable[dict[str, Any]],
    counts: Mapping[str, float],
    rewarded: Mapping[str, float],
) -> Audit:
    """Measure pairs and the candidates that they were chosen from.

    Args:
        pairs: rows of pairs.parquet, at least one.
        candidates: rows of rewards.parquet, grouped by query; read up to AGREEMENT_QUERIES queries.
            There are none of imported pairs.
        counts: the counts of the stage `pairs`.
        rewarded: the counts of the stage `reward`; none of imported pairs.
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
    known = [pair["margin"] for pair in pairs if pair["margin"] is not None]
    margins, width = histogram(known, f"query_{RETRIEVAL}" in pairs[0])
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
        margins=margins,
        bin=None if width == BIN else width,
        retrieval=_retrieval(pairs, rewarded),
    )


def histogram(margins: Sequence[float], measured: bool) -> tuple[tuple[int, ...], float]:
    """Count margins in bins of equal width, from 0.

    Bins of 0.25 are for ranks among the candidates with weights of 1; other rewards have any scale.

    Args:
        margins: of the pairs; none of imported ones.
        measured: whether they are of another reward than ranks among the candidates.

    Returns:
        The counts, and the width: 1, 2 or 5 times a power of ten, if it is not 0.25.

    >>> histogram([0.3, 1.4], measured=False)
    ((0, 1, 0, 0, 0, 1, 0, 0), 0.25)
    >>> histogram([0.01, 0.06], measured=True)
    ((0, 1, 0, 0, 0, 0, 1, 0), 0.01)
    """
    if not margins:
        return (), BIN
    largest, width = max(margins), BIN
    if measured or largest > BIN * BINS:
        power = 10.0 ** math.floor(math.log10(largest / BINS))
        width = next(step * power for step in (1, 2, 5, 10) if step * power * BINS > largest)
    edges = width * np.arange(BINS + 1)
    return tuple(np.histogram(margins, edges)[0].tolist()), width


def _retrieval(
    pairs: list[dict[str, Any]], rewarded: Mapping[str, float]
) -> dict[str, float] | None:
    if f"query_{RETRIEVAL}" not in pairs[0] or not rewarded:
        return None
    sides = {
        side: float(np.mean([pair[f"{side}_{RETRIEVAL}"] for pair in pairs]))
        for side in ("chosen", "rejected")
    }
    return {
        "query alone": rewarded[f"mean_query_{RETRIEVAL}"],
        "candidates": rewarded[f"mean_{RETRIEVAL}"],
        **sides,
        "candidates that beat the query": rewarded["mean_beats_query"],
    }


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


def mean_agreements(
    candidates: Iterable[dict[str, Any]],
) -> tuple[float, float] | tuple[None, None]:
    """Average Kendall's tau-b over queries: between any two components, and of reward and length.

    A query whose candidates are all alike in one of the two counts as 0; without candidates there is
    no agreement. Components are compared by their similarities, or if retrieval was measured by their
    rewards.

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
        kind = "reward" if rows[0].get(RETRIEVAL) is not None else "similarity"
        columns = [[row[f"{name}_{kind}"] for row in rows] for name in names()]
        opinions = [column for column in columns if column[0] is not None]
        agreements += [_tau(*two) for two in combinations(opinions, 2)] or [NO_OPINION]
        words = [count_words(row["text"]) for row in rows]
        length_agreements.append(_tau([row["reward"] for row in rows], words))
    if not length_agreements:
        return None, None
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
       agree with each other: length alone would judge as well as either of them. (A component alone
       is compared with an agreement of 0.5. Of imported pairs nobody knows that, so they never stop.)

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
    rewarded = "agreement" in facts
    if one_sided and rewarded and abs(facts["length_agreement"]) >= facts["agreement"]:
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
            f"set preferences.acceptance to threshold and preferences.acceptance_value to "
            f"{ACCEPT_ALL:g}, which accepts {possible}, or lower preferences.minimum_pairs"
        )
    kept = int(facts.get("accepted", 0) + facts.get(WORSE, 0))
    if kept >= minimum_pairs:
        return f"set preferences.beats_query to false, which accepts {kept}"
    return f"give more queries, or lower preferences.minimum_pairs to {int(facts['pairs'])}"
