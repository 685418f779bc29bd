"""The precision in which a language model writes: float32, or bfloat16 where that is quicker."""

import logging
from functools import cache, partial
from pathlib import Path
from typing import Literal

from expandr_core.options.generation import Precision
from expandr_core.runtime.cores import least_seconds

log = logging.getLogger(__name__)
NARROW = 512  # a narrower model has no products that are worth it
QUICKER = 1.5  # times as fast, so that noise does not decide
ROWS, WIDEST = 64, 1 << 21  # of the product that is measured


def writing_precision(
    folder: Path, device: str, precision: Precision
) -> Literal["float32", "bfloat16"]:
    """Return the precision that is asked for or, for "auto", the quicker one for a model.

    On a GPU that is bfloat16. On a CPU it is measured, once in a process.

    Args:
        folder: the model.
        device: "cpu", or a GPU's.
        precision: what is asked for.
    """
    if precision != "auto":
        return precision
    if device != "cpu":
        return "bfloat16"
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    width = config.get_text_config().hidden_size
    return "bfloat16" if width >= NARROW and bfloat16_is_quicker(width) else "float32"


@cache
def bfloat16_is_quicker(width: int) -> bool:
    """Time a batch times a layer of this width in one thread, and tell whether bfloat16 pays."""
    import torch

    calls = [
        partial(
            torch.mm,
            torch.ones(ROWS, width, dtype=kind),
            torch.ones(width, WIDEST // width, dtype=kind),
        )
        for kind in (torch.float32, torch.bfloat16)
    ]
    single, narrow = least_seconds(*calls)
    ratio = single / narrow
    log.info("bfloat16 is %.1f times as fast as float32 on this processor", ratio)
    return ratio >= QUICKER
