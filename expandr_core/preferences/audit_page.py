"""The audit of the pairs as a page of Markdown."""

from expandr_core.preferences.audit import BIN, Audit


def render(facts: Audit) -> str:
    """Write the audit as Markdown."""

    def share(count: int) -> str:
        return f"{count / facts.pairs:.0%}"

    width = facts.bin or BIN
    digits = ".2f" if width == BIN else "g"
    bins = [
        f"| {k * width:{digits}} to {(k + 1) * width:{digits}} | {count} |"
        for k, count in enumerate(facts.margins)
    ]
    retrieval = [f"| {name} | {value:.3f} |" for name, value in (facts.retrieval or {}).items()]
    if retrieval:
        title = "| retrieval of the positives, as the reward measures it | mean |"
        retrieval = ["", title, "|---|--:|", *retrieval]
    agreement = []
    if facts.agreement is not None and facts.length_agreement is not None:
        agreement = [
            "| agreement among the candidates of a query | Kendall's tau |",
            "|---|--:|",
            f"| the components of the reward | {facts.agreement:.2f} |",
            f"| reward and number of words | {facts.length_agreement:.2f} |",
            "",
        ]
    if bins:
        bins = ["| margin | pairs |", "|---|--:|", *bins]
    return "\n".join(
        [
            _origin(facts),
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
            *agreement,
            *bins,
            *retrieval,
            "",
        ]
    )


def _origin(facts: Audit) -> str:
    if facts.agreement is None:
        return f"{facts.pairs} imported pairs of {facts.queries} queries."
    return (
        f"{facts.pairs} pairs; of {facts.queries} rewarded queries {facts.accepted} were accepted."
    )
