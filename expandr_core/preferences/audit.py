"""What preference pairs teach, seen before anything is trained on them.

A reward can be won by other means than the one intended: if the chosen text is nearly always the longer
one, DPO learns to write longer. So the pairs are compared in length, in how much of the query they
copy, and in what was cut off; and the two halves of the reward with each other and with the length.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter
from typing import Any

import numpy as np

from expandr_core.data.terms import count_words, terms

BIN = 0.25  # width of the margins' bins; a margin is below 2
AGREEMENT_QUERIES = 2000  # enough for a mean within 0.01
CERTAIN = 0.01  # p of the sign test above which a preference for a length may be chance


@dataclass(frozen=True)
class Audit:
    """What the pairs of a round are like.

    Attributes:
        pairs: number of pairs.
        queries: number of queries that were rewarded.
        accepted: of these, the ones with an acceptable pair.
        chosen_words: mean length of the chosen texts, in words; `rejected_words` likewise.
        chosen_longer: pairs in which the chosen text has more words; `rejected_longer` likewise.
        length_p: probability of so unequal numbers of the two, if length did not matter (sign test).
        chosen_copied: mean share of the query's words that the chosen text has; `rejected_copied`
            likewise.
        chosen_cut: chosen texts that were cut at max_new_tokens; `rejected_cut` likewise.
        agreement: Kendall's tau-b between the similarity to the positive and that to the answer,
            among the candidates of a query, averaged over queries.
        length_agreement: the same between the reward and the number of words.
        margins: pairs by margin: below 0.25, below 0.5, and so on up to 2.
    """

    pairs: int
    queries: int
    accepted: int
    chosen_words: float
    rejected_words: float
    chosen_longer: int
    rejected_longer: int
    length_p: float
    chosen_copied: float
    rejected_copied: float
    chosen_cut: int
    rejected_cut: int
    agreement: float
    length_agreement: float
    margins: tuple[int, ...]


def audit(
    pairs: list[dict[str, Any]], candidates: Iterable[dict[str, Any]], counts: Mapping[str, float]
) -> Audit:
    """Measure pairs, and the candidates that they were chosen from.

    Args:
        pairs: rows of a pairs.parquet, at least one.
        candidates: rows of rewards.parquet, those of a query together; so many are read as
            AGREEMENT_QUERIES queries have.
        counts: what the stage `pairs` counted.
    """
    words, copied, cut = {}, {}, {}
    for side in ("chosen", "rejected"):
        words[side] = np.array([count_words(pair[f"{side}_text"]) for pair in pairs])
        copied[side] = np.mean(
            [copied_share(pair["query"], pair[f"{side}_text"]) for pair in pairs]
        )
        cut[side] = sum(pair[f"{side}_finish_reason"] == "length" for pair in pairs)
    longer = int((words["chosen"] > words["rejected"]).sum())
    shorter = int((words["chosen"] < words["rejected"]).sum())
    agreement, length_agreement = mean_agreements(candidates)
    bins = np.arange(0, 2 + BIN / 2, BIN)
    return Audit(
        pairs=len(pairs),
        queries=int(counts["queries"]),
        accepted=int(counts["accepted"]),
        chosen_words=float(words["chosen"].mean()),
        rejected_words=float(words["rejected"].mean()),
        chosen_longer=longer,
        rejected_longer=shorter,
        length_p=sign_test(longer, shorter),
        chosen_copied=float(copied["chosen"]),
        rejected_copied=float(copied["rejected"]),
        chosen_cut=cut["chosen"],
        rejected_cut=cut["rejected"],
        agreement=agreement,
        length_agreement=length_agreement,
        margins=tuple(np.histogram([pair["margin"] for pair in pairs], bins)[0].tolist()),
    )


def copied_share(query: str, text: str) -> float:
    """Return the share of the query's distinct words that the text has; 0 for a query without words.

    >>> copied_share("Why is the sky blue?", "The sky scatters blue light.")  # the, sky, blue of 5
    0.6
    """
    asked, written = (set(terms(each.lower())) for each in (query, text))
    return len(asked & written) / len(asked) if asked else 0.0


def sign_test(one: int, other: int) -> float:
    """Return the probability of two such unequal counts if both were equally likely; ties left out.

    >>> sign_test(3, 0), sign_test(2, 2)  # three heads or three tails: 2 of 8
    (0.25, 1.0)
    """
    from scipy import stats

    return float(stats.binomtest(one, one + other).pvalue) if one + other else 1.0


def mean_agreements(candidates: Iterable[dict[str, Any]]) -> tuple[float, float]:
    """Average Kendall's tau-b over queries: of the two similarities, and of reward and length.

    A query whose candidates are all alike in one of the two counts as 0.

    >>> def row(text, positive, answer, reward):
    ...     return {"query_id": "q", "text": text, "similarity_to_positive": positive,
    ...             "similarity_to_answer": answer, "retriever_reward": reward, "self_reward": 0.0}
    >>> mean_agreements([row("a b", 0.9, 0.8, 1.0), row("a", 0.5, 0.1, 0.5), row("", 0.1, 0.2, 0.1)])
    (0.33333333333333337, 1.0)
    """
    agreements, length_agreements = [], []
    by_query = groupby(candidates, key=itemgetter("query_id"))
    for _, group in islice(by_query, AGREEMENT_QUERIES):
        rows = list(group)
        to_positive, to_answer = (
            [row[f"similarity_to_{what}"] for row in rows] for what in ("positive", "answer")
        )
        agreements.append(_tau(to_positive, to_answer))
        rewards = [row["retriever_reward"] + row["self_reward"] for row in rows]
        length_agreements.append(_tau(rewards, [count_words(row["text"]) for row in rows]))
    return float(np.mean(agreements)), float(np.mean(length_agreements))


def _tau(one: list[float], other: list[float]) -> float:
    from scipy import stats

    result: Any = stats.kendalltau(one, other)
    return float(np.nan_to_num(result.statistic))  # nan if one does not vary


def reason_to_stop(facts: Mapping[str, float], minimum_pairs: int, length_share: float) -> str:
    """Say why nothing should be trained on the pairs; empty if nothing speaks against it.

    They teach only length if all of this holds:

    1. The chosen text is the longer one, or the shorter one, in more than `length_share` of the
       pairs (equal lengths count half), and that is no chance (sign test).
    2. Among all candidates, the reward agrees with the length at least as well as its two halves
       agree with each other: the length alone would judge as well as either of them.

    Args:
        facts: the numbers of an `Audit`, by name.
        minimum_pairs: fewer are too few.
        length_share: see above; 1 never stops.

    >>> facts = {"pairs": 100, "chosen_longer": 96, "rejected_longer": 4, "length_p": 1e-20,
    ...          "length_agreement": 0.7, "agreement": 0.4}
    >>> print(reason_to_stop(facts, minimum_pairs=10, length_share=0.9)[:61])
    the pairs teach only length: the chosen text is the longer in
    >>> reason_to_stop(facts | {"agreement": 0.8}, minimum_pairs=10, length_share=0.9)
    ''
    """
    pairs = int(facts["pairs"])
    if pairs < minimum_pairs:
        return (
            f"there are {pairs} preference pairs and at least {minimum_pairs} are wanted; "
            f"{_remedy_of_few(facts, minimum_pairs)}"
        )
    share = 0.5 + (facts["chosen_longer"] - facts["rejected_longer"]) / (2 * pairs)
    one_sided = max(share, 1 - share) > length_share and facts["length_p"] < CERTAIN
    if one_sided and abs(facts["length_agreement"]) >= facts["agreement"]:
        which = "longer" if share > 0.5 else "shorter"
        return (
            f"the pairs teach only length: the chosen text is the {which} in "
            f"{max(share, 1 - share):.0%} of {pairs} pairs, and the reward agrees with the length "
            f"(tau {facts['length_agreement']:.2f}) at least as well as its two halves with each "
            f"other ({facts['agreement']:.2f}); let texts end by themselves "
            "(expand.candidates.max_new_tokens), use another retriever, or raise "
            "preferences.length_share to go on all the same"
        )
    return ""


def _remedy_of_few(facts: Mapping[str, float], minimum_pairs: int) -> str:
    """Say what brings enough pairs, or that nothing does with these queries."""
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
            f"| share of the query's words | {facts.chosen_copied:.0%} | {facts.rejected_copied:.0%} |",
            f"| cut at max_new_tokens | {share(facts.chosen_cut)} | {share(facts.rejected_cut)} |",
            "",
            f"That one side is longer so often has p = {facts.length_p:.2g} (sign test).",
            "",
            "| agreement among the candidates of a query | Kendall's tau |",
            "|---|--:|",
            f"| similarity to the positive, and to the answer | {facts.agreement:.2f} |",
            f"| reward, and number of words | {facts.length_agreement:.2f} |",
            "",
            "| margin | pairs |",
            "|---|--:|",
            *bins,
            "",
        ]
    )
