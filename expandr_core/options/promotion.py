"""When the models of a run become the champion by themselves."""

from typing import Annotated

from pydantic import Field

from expandr_core.options.base import Options, Positive, runtime

Loss = Annotated[float, Field(ge=0)]


class PromotionOptions(Options):
    """The gate at the end of a run: its models against the champion's, both measured anew.

    Nothing of it enters the key of a model.
    """

    enabled: bool = runtime(
        False,
        description="Let the models of the run become the champion of their collection if they are "
        "better on the dev queries than the champion of that moment.",
    )
    minimum_gain: float = runtime(
        0.0, ge=0, description="Least gain in nDCG@10 on the dev queries that is enough."
    )
    level: float = runtime(
        0.05, gt=0, lt=1, description="Largest p-value of that gain, after Holm's correction."
    )
    tolerance: dict[str, Loss] = runtime(
        {},
        description="Other collections on which the models must not lose more nDCG@10 than this, by "
        "name or folder as for `expandr evaluate --datasets`, such as scifact: 0.01.",
    )
    seeds: Positive = runtime(
        3, description="How many seeds of sampled expansions both are measured with."
    )
