"""The words of a report that its reader may not know, each explained once."""

from collections.abc import Iterable

ALWAYS = {
    "nDCG@10": "how well the first ten passages match the judgements; 1 is the best possible order",
    "baseline": "the system that another one is tested against in the table",
    "cluster": "queries that belong together and count as one observation; mostly each query is its own",
}
IN_TITLES = {
    "query only": "search with the query as it is",
    "untrained": "an expansion by the LLM of the start, not aligned with the retriever",
    "DPO'd": "an expansion by the LLM after DPO (direct preference optimization): it has learned which "
    "of its own texts the retriever likes better",
    "KTO-aligned": "an expansion by the LLM after KTO has aligned it with the retriever",
    "SFT-aligned": "an expansion by the LLM after fine-tuning on the chosen texts",
    "control": "the retriever trained on the same examples, but without expansions",
    "joint": "the aligned LLM together with the retriever that was trained with its expansions",
    "expansion alone": "search with the expansion, without the query",
    "learned weight": "how much the expansion counts beside the query, learned on dev; at 0 not at all",
    "gated": "a gate that was learned on dev chooses which queries are expanded",
    "ranks fused": "the rankings with and without an expansion, put together",
    "distilled": "a query encoder that learned to do without the LLM",
    "RM3": "BM25 with further terms from its own first passages",
    "greedy": "the likeliest text of the LLM instead of a sampled one",
}


def terms_of(titles: Iterable[str]) -> dict[str, str]:
    """Explain the words that occur in titles of systems.

    >>> list(terms_of(["query only", "joint round 1, query only"]))
    ['query only', 'joint', 'nDCG@10', 'baseline', 'cluster']
    """
    whole = "\n".join(titles)
    return {word: text for word, text in IN_TITLES.items() if word in whole} | ALWAYS
