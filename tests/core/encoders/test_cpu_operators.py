"""Operators for CPUs compute what torch's do."""

import pytest
import torch
import torch.nn.functional as F

from expandr_core.encoders.cpu_operators import CPUOperators, helps

ATTENTION = torch.nn.functional.scaled_dot_product_attention
TEXTS, HEADS, TOKENS, SIZE = 5, 3, 450, 16  # two texts are computed at once


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")
@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 3, 7), (0, 7)])
def test_onednn_computes_what_torch_does(shape):
    random = torch.Generator().manual_seed(0)
    inputs, weight, bias = (torch.randn(size, generator=random) for size in (shape, (4, 7), (4,)))
    linear = F.linear
    expected = [
        linear(inputs, weight, bias),
        linear(inputs, weight),
        linear(inputs.double(), weight.double()),
    ]
    with torch.inference_mode(), CPUOperators():
        found = [
            linear(inputs, weight, bias),
            linear(input=inputs, weight=weight),
            linear(inputs.double(), weight.double()),
        ]
    for ours, torchs in zip(found, expected, strict=True):
        assert ours.dtype == torchs.dtype
        torch.testing.assert_close(ours, torchs, atol=1e-6, rtol=1e-6)


def tensors(dtype: torch.dtype, tokens: int = TOKENS) -> list[torch.Tensor]:
    """Return query, key and value, laid out as models have them."""
    random = torch.Generator().manual_seed(0)
    shape = (TEXTS, tokens, HEADS, SIZE)
    return [torch.randn(shape, generator=random).to(dtype).transpose(1, 2) for _ in range(3)]


def padding(tokens: int = TOKENS) -> torch.Tensor:
    """Return a mask of texts that are cut at various lengths, on either side."""
    seen = torch.ones(TEXTS, 1, tokens, tokens, dtype=torch.bool)
    for text in range(1, TEXTS):
        seen[text, ..., : 30 * text] = False
        seen[text, ..., tokens - 20 * text :] = False
    return seen


CASES = {
    "plain": {},
    "scaled": {"scale": 0.5},
    "padded": {"attn_mask": padding()},
    "padded for one query": {"attn_mask": padding()[:, :, :1]},
    "causal": {"is_causal": True},
    "another mask for each query": {
        "attn_mask": torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
    },
    "biased": {"attn_mask": torch.arange(float(TOKENS)).bfloat16().expand(1, 1, TOKENS, TOKENS)},
}


@pytest.mark.skipif(not helps("bfloat16"), reason="torch's own operators are used here")
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_attention_in_bfloat16_is_as_exact_as_its_type(options):
    query, key, value = tensors(torch.bfloat16)
    mask = options.get("attn_mask")
    exact = (
        options | {"attn_mask": mask.double()}
        if mask is not None and mask.is_floating_point()
        else options
    )
    expected = ATTENTION(query.double(), key.double(), value.double(), **exact)
    with torch.inference_mode(), CPUOperators():
        found = ATTENTION(query, key, value, **options)
    assert found.dtype == torch.bfloat16 and found.shape == expected.shape
    error = (found - expected).norm() / expected.norm()
    assert error < 2**-6


@pytest.mark.skipif(not helps("bfloat16"), reason="torch's own operators are used here")
def test_what_a_text_attends_to_does_not_depend_on_the_texts_beside_it():
    query, key, value = tensors(torch.bfloat16, 40)
    mask = padding(40) | torch.eye(40, dtype=torch.bool)[39]
    with torch.inference_mode(), CPUOperators():
        together = ATTENTION(query, key, value, attn_mask=mask)
        alone = [
            ATTENTION(query[[text]], key[[text]], value[[text]], attn_mask=mask[[text]])
            for text in range(TEXTS)
        ]
    assert torch.equal(together, torch.cat(alone))


def test_attention_in_float32_is_torchs_own():
    parts = tensors(torch.float32)
    with torch.inference_mode(), CPUOperators():
        found = ATTENTION(*parts, attn_mask=padding())
    assert torch.equal(found, ATTENTION(*parts, attn_mask=padding()))
