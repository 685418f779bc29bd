"""The seeded split of the training queries: preference, retriever, dev.

A query's split depends on its text and the seed alone, not on the order of rows or on other rows.
However often a query occurs, in whatever files, it falls into one split.
"""

import unicodedata
from collections.abc import Container, Mapping
from typing import Literal, get_args

from expandr_core.errors import DataError
from expandr_core.seeding import unit_interval

SplitName = Literal["preference", "retriever", "dev"]
SPLIT_NAMES: tuple[SplitName, ...] = get_args(SplitName)


def normalise(text: str) -> str:
    """Map spellings of one query to one text: compatible characters, case, white space.

    >>> normalise("  Wo ist\\tdie  STRAßE? "), normalise("\\ufb01ve")
    ('wo ist die strasse?', 'five')
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def split_of(normalised: str, seed: int, preference_share: float, dev_share: float) -> SplitName:
    """Return the split of a normalised query.

    Preference takes the lower end of [0, 1) and dev the upper end, so changing one share moves no
    query in or out of the other.
    """
    draw = unit_interval("split", seed, normalised)
    if draw < preference_share:
        return "preference"
    return "dev" if draw >= 1 - dev_share else "retriever"


class Split:
    """The split of all training queries, without those held out for dev and test."""

    def __init__(
        self, seed: int, preference_share: float, dev_share: float, held_out: Container[str] = ()
    ):
        """Define a split.

        Args:
            seed: of the draw.
            preference_share: share of all queries that align the language model.
            dev_share: share of all queries that choose the best round; 0 if a dev set is given.
            held_out: normalised dev and test queries.

        Raises:
            DataError: if the shares leave nothing for the retriever.
        """
        if preference_share + dev_share >= 1:
            raise DataError(
                "data.preference_share and data.dev_share leave nothing to the retriever; "
                "make their sum less than 1"
            )
        self.seed = seed
        self.preference_share = preference_share
        self.dev_share = dev_share
        self.held_out = held_out
        self.leaked: set[str] = set()

    def of(self, query: str) -> SplitName | None:
        """Return a query's split, or None (and remember it) if the query is held out."""
        normalised = normalise(query)
        if normalised in self.held_out:
            self.leaked.add(normalised)
            return None
        return split_of(normalised, self.seed, self.preference_share, self.dev_share)

    def require(self, queries: Mapping[SplitName, int]) -> None:
        """Refuse empty splits, given the number of queries in each."""
        shares: dict[SplitName, float] = {
            "preference": self.preference_share,
            "retriever": 1 - self.preference_share - self.dev_share,
            "dev": self.dev_share,
        }
        for name, share in shares.items():
            if share > 0 and not queries[name]:
                option = "data.dev_share" if name == "dev" else "data.preference_share"
                raise DataError(
                    f"no query is left in the {name} split: its share is {share:.3g} of "
                    f"{sum(queries.values())} training queries; change {option}, or add queries"
                )
