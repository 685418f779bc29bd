"""How systems are measured and compared."""

from typing import Literal, Self

from pydantic import Field

from expandr_core.options.base import Options, Positive, added, runtime
from expandr_core.options.data import IdenticalIds

Language = Literal[
    "none", "arabic", "armenian", "basque", "catalan", "czech", "danish", "dutch", "english",
    "estonian", "finnish", "french", "german", "greek", "hindi", "hungarian", "indonesian", "irish",
    "italian", "lithuanian", "nepali", "norwegian", "persian", "polish", "portuguese", "romanian",
    "russian", "serbian", "spanish", "swedish", "tamil", "turkish", "yiddish",
]  # fmt: skip


class SignificanceOptions(Options):
    """When a difference between two systems counts."""

    test: Literal["t", "randomisation"] = Field(
        default="t",
        description="Paired test between two systems. With fewer than ten clusters, or if all differ "
        "alike, it is always the randomisation test.",
    )
    significance_level: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="A difference counts if its p-value, after Holm's correction, is below.",
    )


class EvaluationOptions(Options):
    """How systems are measured and compared."""

    depth: int = Field(default=1000, ge=100, description="Passages kept per query in the run.")
    greedy: bool = Field(default=True, description="Also report expansions decoded greedily.")
    identical_ids: Literal["dataset", "ignore", "keep"] = Field(
        default="dataset",
        description="Whether a run ignores the passage that has the query's id, as beir does, or keeps "
        "it. 'dataset': as the dataset's library does (NanoBEIR keeps it, all others ignore it).",
    )
    similarity: Literal["retriever", "cosine", "dot"] = added(
        "retriever",
        description="How vectors are compared in evaluation and in `expandr search`: as "
        "retriever.encoding.similarity says, or otherwise (the paper trains by dot, and evaluates by "
        "cosine).",
    )
    fusion: Literal["vector", "rrf"] = Field(
        default="vector",
        description="'rrf' also measures the kept models with the ranks of the query's run and of the "
        "expanded query's fused (Exp4Fuse), in a row of its own.",
    )
    bm25_language: Language = Field(
        default="english",
        description="Language of BM25's stemmer and stop words. Scripts without spaces need none: "
        "there BM25 searches for pairs of characters.",
    )
    bm25_query_repeats: Positive = Field(
        default=1,
        description="How often BM25 reads the query before its expansion, so that a long expansion does "
        "not drown it (Query2Doc: 5).",
    )
    rm3: bool = Field(
        default=False,
        description="Also report BM25 with RM3: the query expanded by terms of its first hits, which "
        "needs no LLM.",
    )
    significance: SignificanceOptions = Field(
        default=SignificanceOptions(), title="Significance of differences"
    )
    report: bool = runtime(
        True,
        description="Write a report with pictures at the end of the run, into reports/ of the store.",
    )


class RankingOptions(Options):
    """Which passages of a ranking are kept."""

    depth: Positive = Field(default=1000, description="Passages kept per query.")
    identical_ids: IdenticalIds = Field(
        default="ignore", description="Whether the passage that has the query's id is kept."
    )

    @classmethod
    def of(cls, options: EvaluationOptions, dataset: IdenticalIds) -> Self:
        """Rank as the options say; `dataset` is what the dataset's library does with identical ids."""
        chosen = options.identical_ids
        return cls(depth=options.depth, identical_ids=dataset if chosen == "dataset" else chosen)
