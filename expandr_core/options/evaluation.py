"""How systems are measured and compared."""

from typing import Literal

from pydantic import Field

from expandr_core.options.base import Options, added

Language = Literal[
    "none", "arabic", "armenian", "basque", "catalan", "czech", "danish", "dutch", "english",
    "estonian", "finnish", "french", "german", "greek", "hindi", "hungarian", "indonesian", "irish",
    "italian", "lithuanian", "nepali", "norwegian", "persian", "polish", "portuguese", "romanian",
    "russian", "serbian", "spanish", "swedish", "tamil", "turkish", "yiddish",
]  # fmt: skip


class EvaluationOptions(Options):
    """How systems are measured and compared."""

    depth: int = Field(default=1000, ge=100, description="Passages kept per query in the run.")
    test: Literal["t", "randomisation"] = Field(
        default="t",
        description="Paired test between two systems. Of fewer than ten clusters, or where all differ "
        "alike, it is the randomisation test either way.",
    )
    significance_level: float = Field(
        default=0.05, gt=0, lt=1, description="After Holm's correction."
    )
    greedy: bool = Field(default=True, description="Also report expansions decoded greedily.")
    identical_ids: Literal["dataset", "ignore", "keep"] = added(
        "dataset",
        description="A passage with the query's id is left out of what is found, as beir does, or "
        "kept. 'dataset': as the dataset's own library does; kept in NanoBEIR, left out elsewhere.",
    )
    bm25_language: Language = added(
        "english",
        description="Whose stemmer and stop words BM25 uses. Scripts without spaces need none: there "
        "it searches for pairs of characters.",
    )
