"""Where models run."""

import pytest
import torch

from expandr_core.errors import DataError
from expandr_core.runtime.device import run_device


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named_with_what_to_do():
    assert run_device("auto") == "cpu"
    with pytest.raises(DataError, match="no GPU; set it to 'auto' or 'cpu'"):
        run_device("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_attention_on_a_gpu_plans_nothing_for_new_shapes():
    assert run_device("auto") == "cuda"
    assert not torch.backends.cuda.cudnn_sdp_enabled()
