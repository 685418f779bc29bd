"""The seeded split of the training queries into preference, retriever and dev part.

A query's part follows from its own text and the seed alone: neither the order of the rows nor other
rows matter, and however often a query occurs, in whatever files, it is in one part only.
"""

import unicodedata
from collections.abc import Container, Mapping
from typing import Literal, get_args

from expandr_core.errors import DataError
from expandr_core.seeding import unit_interval

Part = Literal["preference", "retriever", "dev"]
PARTS: tuple[Part, ...] = get_args(Part)


def normalise(text: str) -> str:
    """Make spellings of one query equal: compatible characters, case, white space.

    >>> normalise("  Wo ist\\tdie  STRAßE? "), normalise("\\ufb01ve")
    ('wo ist die strasse?', 'five')
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def part_of(normalised: str, seed: int, preference_share: float, dev_share: float) -> Part:
    """Return the part of a query, given its normalised text.

    The preference part is drawn from the lower end of [0, 1), the dev part from the upper end, so
    that changing one share does not move queries in or out of the other part.
    """
    draw = unit_interval("split", seed, normalised)
    if draw < preference_share:
        return "preference"
    return "dev" if draw >= 1 - dev_share else "retriever"


class Split:
    """The split with the queries held out for dev and test, which are not trained on."""

    def __init__(
        self, seed: int, preference_share: float, dev_share: float, held_out: Container[str] = ()
    ):
        """Define a split.

        Args:
            seed: changes the draw.
            preference_share: share of all queries that align the language model.
            dev_share: share of all queries that choose the best round; 0 if a dev set is given.
            held_out: normalised dev and test queries.

        Raises:
            DataError: if the shares leave nothing to the retriever.
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

    def part(self, query: str) -> Part | None:
        """Return a query's part, or None (and remember it) if it is held out."""
        normalised = normalise(query)
        if normalised in self.held_out:
            self.leaked.add(normalised)
            return None
        return part_of(normalised, self.seed, self.preference_share, self.dev_share)

    def require(self, queries: Mapping[Part, int]) -> None:
        """Refuse a split with an empty part, given the number of queries by part."""
        shares: dict[Part, float] = {
            "preference": self.preference_share,
            "retriever": 1 - self.preference_share - self.dev_share,
            "dev": self.dev_share,
        }
        for part, share in shares.items():
            if share > 0 and not queries[part]:
                option = "data.dev_share" if part == "dev" else "data.preference_share"
                raise DataError(
                    f"no query is left in the {part} part: its share is {share:.3g} of "
                    f"{sum(queries.values())} training queries; change {option}, or add queries"
                )
