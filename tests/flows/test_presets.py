"""Presets: the values of a file, changed by what differs from the defaults."""

from typing import get_args

import pytest
from pydantic import ValidationError

from deployments.plan import plan
from expandr_core.errors import DataError
from expandr_core.options.generation import GenerationOptions, SamplingOptions
from expandr_core.options.loop import JointLoopOptions, LoopOptions
from flows.presets import CONFIGS, Preset, place, resolve
from tasks.placement import SPREAD, Placement

DEFAULTS = JointLoopOptions()


def test_every_config_is_a_preset():
    names = {path.stem for path in CONFIGS.glob("*.yaml")}
    assert {*names, "none"} - {"ablations"} == set(get_args(Preset))  # a list of changes


@pytest.mark.parametrize("preset", get_args(Preset))
def test_the_defaults_change_no_preset(preset):
    assert resolve(preset, resolve(preset, DEFAULTS)) == resolve(preset, DEFAULTS)


def test_without_a_preset_the_options_stay():
    options = JointLoopOptions(seed=7, loop=LoopOptions(rounds=5))
    assert resolve("none", options) == options


def test_what_differs_from_the_defaults_overrides_the_preset_and_nothing_else():
    demo = resolve("demo", DEFAULTS)
    options = JointLoopOptions(seed=7, loop=LoopOptions(rounds=5))
    changed = resolve("demo", options)
    assert (changed.seed, changed.loop.rounds) == (7, 5)
    assert changed.loop.stop_without_gain is demo.loop.stop_without_gain is False
    back = {"seed": demo.seed, "loop": demo.loop}
    assert changed.model_copy(update=back) == demo


def test_a_nested_default_is_told_from_the_default_of_its_class():
    """`candidates` has 32 samples by default, `SamplingOptions` has 1."""
    candidates = SamplingOptions(samples=1, sampling_temperatures=(1.0,))
    changed = resolve("demo", JointLoopOptions(expand=GenerationOptions(candidates=candidates)))
    assert changed.expand.candidates == candidates.model_copy(
        update={"top_p": 1.0, "max_new_tokens": 64}
    )


def test_options_of_a_preset_get_their_default_back():
    tiny, back = resolve("tiny", DEFAULTS), ("loop.rounds", "expand.candidates.samples", "dpo")
    assert (tiny.loop.rounds, DEFAULTS.loop.rounds) == (1, 2)
    changed = resolve("tiny", DEFAULTS, back)
    assert changed.loop == tiny.loop.model_copy(update={"rounds": 2})
    samples = {"samples": DEFAULTS.expand.candidates.samples}
    assert changed.expand.candidates == tiny.expand.candidates.model_copy(update=samples)
    assert changed.dpo == DEFAULTS.dpo
    assert changed.training == tiny.training


def test_what_is_said_beside_it_counts_more_than_a_default():
    options = JointLoopOptions(loop=LoopOptions(rounds=5))
    assert resolve("tiny", options, ("loop",)).loop.rounds == 5


@pytest.mark.parametrize("preset", ["none", "tiny"])
def test_a_misspelt_option_gets_no_default_back(preset):
    with pytest.raises(DataError, match=r"no option loop\.round; did you mean loop\.rounds or"):
        resolve(preset, DEFAULTS, ("loop.round",))


def test_what_does_not_fit_together_is_refused():
    """The 32 samples of the defaults are a multiple of 8 temperatures; the preset's 4 are not."""
    temperatures = tuple(number / 10 for number in range(1, 9))
    candidates = SamplingOptions(samples=32, sampling_temperatures=temperatures)
    options = JointLoopOptions(expand=GenerationOptions(candidates=candidates))
    with pytest.raises(ValidationError, match=r"samples \(4\) must be a multiple"):
        resolve("tiny", options)


def test_the_papers_retrievers_are_compared_as_they_are_trained():
    for preset, model, convention, similarity, temperature in (
        ("paper", "yiqingx/AnchorDR", "model", "dot", 1.0),
        ("cosine-0.02", "facebook/contriever", "contriever", "cosine", 0.02),
    ):
        options = resolve(preset, DEFAULTS)
        retriever = options.retriever
        assert (retriever.model, retriever.convention.name) == (model, convention)
        assert retriever.encoding.similarity == similarity
        assert options.training.contrastive_temperature == temperature


def test_the_tiny_preset_needs_no_pool_unless_somebody_chose_one():
    begun_with = [each.parameters.get("placement") for each in plan("/store", "UTC")]
    assert begun_with.count(SPREAD.model_dump()) == 5
    assert place("tiny", SPREAD) == Placement()
    assert place("demo", SPREAD) == SPREAD
    chosen = SPREAD.model_copy(update={"data": "cpu"})
    assert place("tiny", chosen) == chosen
