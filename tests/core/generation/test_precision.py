"""In which precision a model writes: what is asked for, or what is quicker; and that it is recorded."""

import pytest
from pydantic import ValidationError

from expandr_core.generation import precision
from expandr_core.generation.engine import Request
from expandr_core.generation.precision import writing_precision
from expandr_core.generation.transformers_engine import TransformersGenerator
from expandr_core.options.base import identity
from expandr_core.options.generation import (
    ChatOptions,
    LLMOptions,
    SamplingOptions,
    VLLMOptions,
)
from expandr_core.options.loop import JointLoopOptions
from expandr_core.stages.expand import ExpandOptions


def test_what_is_asked_for_is_taken(llm_folder):
    assert writing_precision(llm_folder, "cpu", "bfloat16") == "bfloat16"
    assert writing_precision(llm_folder, "cuda", "float32") == "float32"


def test_auto_is_bfloat16_on_a_gpu_and_float32_for_a_small_model_on_a_cpu(llm_folder):
    assert writing_precision(llm_folder, "cuda", "auto") == "bfloat16"
    assert writing_precision(llm_folder, "cpu", "auto") == "float32"


@pytest.mark.parametrize(("margin", "expected"), [(0.0, "bfloat16"), (1e9, "float32")])
def test_auto_is_measured_for_a_wider_model(llm_folder, monkeypatch, margin, expected):
    monkeypatch.setattr(precision, "NARROW", 32)
    monkeypatch.setattr(precision, "QUICKER", margin)
    precision.bfloat16_is_quicker.cache_clear()
    assert writing_precision(llm_folder, "cpu", "auto") == expected
    precision.bfloat16_is_quicker.cache_clear()


def test_texts_in_bfloat16_are_texts_of_the_same_model(llm_folder):
    """Near-ties fall otherwise; most greedy texts stay."""
    requests = [Request("q2d", f"why is {n} grey?", "", (n,), (0.0,)) for n in range(30)]
    options = SamplingOptions(max_new_tokens=5)
    texts = []
    for kind in ("float32", "bfloat16"):
        generator = TransformersGenerator(llm_folder, "cpu", precision=kind)
        assert generator.precision == kind
        found = dict(each for part in generator.generate(requests, options, 160) for each in part)
        texts.append([found[n][0].text for n in range(30)])
    assert sum(one == other for one, other in zip(*texts, strict=True)) >= 15


def test_only_a_precision_that_was_asked_for_is_in_the_key():
    def keyed(llm: LLMOptions) -> dict:
        options = JointLoopOptions(llm=llm)
        sampling = options.expand.candidates
        return identity(ExpandOptions.of(options, sampling, None, ChatOptions()))

    assert "precision" not in keyed(LLMOptions())
    assert keyed(LLMOptions(precision="bfloat16"))["precision"] == "bfloat16"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"engine": "endpoint", "precision": "bfloat16"}, "a server computes as it was started"),
        (
            {"engine": "vllm", "precision": "float32", "vllm": VLLMOptions(precision="float16")},
            "precision is 'float32', but vllm.precision 'float16'",
        ),
    ],
)
def test_a_precision_that_cannot_be_is_refused(options, told):
    with pytest.raises(ValidationError, match=told):
        LLMOptions(**options)
