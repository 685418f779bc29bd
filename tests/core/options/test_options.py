"""Which options are in a key, and which numbers are options."""

import pytest
from pydantic import ValidationError

from expandr_core.options.base import Options, added, identity, runtime
from expandr_core.options.loop import JointLoopOptions


class Grown(Options):
    first: int = 1
    speed: int = runtime(2)
    later: str = added("as before", description="Came later.")


def test_an_option_added_later_leaves_the_keys_of_before_as_they_are():
    assert identity(Grown()) == {"first": 1}
    assert identity(Grown(speed=3, later="as before")) == {"first": 1}
    assert identity(Grown(later="otherwise")) == {"first": 1, "later": "otherwise"}


NUMBERS = [
    "dpo.epochs",
    "dpo.beta",
    "preferences.minimum_margin",
    "expand.candidates.sampling_temperatures",
    "llm.endpoint.timeout_seconds",
    "retriever.index.search_memory_gb",
]


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan"), "inf", "NaN"])
@pytest.mark.parametrize("name", NUMBERS)
def test_infinity_and_nan_are_no_numbers_of_an_option(name, number):
    given = [number] if name.endswith("temperatures") else number
    for part in reversed(name.split(".")):
        given = {part: given}
    with pytest.raises(ValidationError, match="finite number"):
        JointLoopOptions.model_validate(given)
