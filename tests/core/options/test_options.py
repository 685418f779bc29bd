"""Which options are in a key, and which numbers are options."""

import json

import pytest
from pydantic import ValidationError

from expandr_core.options.base import Options, added, identity, runtime
from expandr_core.options.generation import SamplingOptions
from expandr_core.options.loop import JointLoopOptions
from expandr_core.stages import dpo, kto, sft


class Group(Options):
    batch: int = runtime(8)
    depth: int = 5


class Stage(Options):
    speed: int = runtime(2)
    group: Group = Group()
    several: tuple[Group, ...] = (Group(),)


def test_options_of_speed_stay_out_of_the_key_at_every_depth():
    expected = {"group": {"depth": 5}, "several": [{"depth": 5}]}
    assert identity(Stage()) == expected
    fast = Group(batch=1)
    assert identity(Stage(speed=3, group=fast, several=(fast,))) == expected


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


@pytest.mark.parametrize("temperature", [-1.0, -1e-9])
def test_a_temperature_below_0_would_sample_the_least_likely_tokens_and_is_refused(temperature):
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        SamplingOptions(samples=2, sampling_temperatures=(0.0, temperature))


def test_an_added_option_is_in_the_key_only_where_it_differs_from_its_default():
    class Stage(Options):
        depth: int = 3
        newer: int = added(5)

    assert identity(Stage()) == identity(Stage(newer=5)) == {"depth": 3}
    assert identity(Stage(newer=6)) == {"depth": 3, "newer": 6}


@pytest.mark.parametrize("kind", [JointLoopOptions, dpo.OPTIONS, kto.OPTIONS, sft.OPTIONS])
def test_a_default_has_the_key_of_the_same_value_when_it_is_given(kind):
    """As when a preset or a form gives it, or a manifest: 2 epochs are 2.0 epochs."""
    given = kind(**json.loads(kind().model_dump_json()))
    assert json.dumps(identity(given)) == json.dumps(identity(kind()))
    again = kind(**json.loads(json.dumps(identity(kind()))))
    assert json.dumps(identity(again)) == json.dumps(identity(kind()))
