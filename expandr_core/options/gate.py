"""When a query is searched with its expansions, learned on dev."""

from typing import Any, Literal

from pydantic import Field, field_validator

from expandr_core.options.base import Options

GateMode = Literal["off", "global", "before", "after"]


class GateOptions(Options):
    """The weight of the expansions, and the gate, both learned on the dev queries."""

    mode: GateMode = Field(
        default="before",
        description="What is learned on the dev queries for the kept models. global: one weight of the "
        "expansions for all queries. before: also which queries are expanded, told before the LLM "
        "writes. after: told from its texts too, which saves no call of the LLM. off: nothing.",
    )
    cost: float = Field(
        default=0.01,
        ge=0,
        description="What expanding all queries must bring in nDCG@10 to be worth the LLM's calls; of a "
        "share of the queries, that share of it. 0: any gain is worth them.",
    )

    @field_validator("mode", mode="before")
    @classmethod
    def _off_in_yaml(cls, given: Any) -> Any:
        """Read `off` in YAML, which means false there."""
        return "off" if given is False else given
