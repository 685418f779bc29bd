"""Try a language model the way the product uses it: texts for a prompt, and a row of DPO."""

import logging
import math
from pathlib import Path
from typing import Any

from expandr_core.errors import DataError

log = logging.getLogger(__name__)
ANY = 10**6  # tokens; how many there may be is for the options to say
QUERIES = ("What is a wing?", "dust")
TEXT = "A wing moves air down, and the air moves the wing up."


def try_llm(folder: Path, model: Any) -> None:
    """Write two texts for one prompt, sampled and greedy, and tokenise a preference pair.

    A model that this machine's memory does not hold, or that is quantised, writes no text.

    Args:
        folder: of the model.
        model: the same without its weights.

    Raises:
        DataError: with what is wrong.
    """
    from transformers import AutoTokenizer

    from expandr_core.generation.pair_tokens import preference_ids
    from expandr_core.generation.prompts import fit_prompt

    tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    row = {"query_id": "trial", "query": QUERIES[0]}
    for side in ("chosen", "rejected"):
        row |= {f"{side}_text": TEXT, f"{side}_finish_reason": "stop"}
    try:
        prompts = [fit_prompt(tokenizer, "q2d", each, "", ANY).ids for each in QUERIES]
        preference_ids(tokenizer, row, "q2d", max_prompt_tokens=ANY, max_tokens=ANY)
        if _fits(folder, model):
            _write(folder, max(map(len, prompts)))
    except DataError as error:
        raise DataError(f"{folder}: {error}") from error
    except Exception as error:
        what = next(iter(str(error).strip().splitlines()), "")
        raise DataError(
            f"{folder}: {type(model).__name__} cannot be used here, as a first text was tried in vain "
            f"({type(error).__name__}: {what}); name another model"
        ) from error


def _fits(folder: Path, model: Any) -> bool:
    import psutil

    wanted = 4 * math.fsum(weight.numel() for weight in model.parameters())  # float32
    free = psutil.virtual_memory().available
    quantised = getattr(model.config, "quantization_config", None) is not None
    if quantised or wanted > 0.8 * free:
        log.warning(
            "%s: no text was tried; the model takes %.1f GB here%s, of which %.1f are free",
            *(folder, wanted / 1e9, ", is quantised" if quantised else "", free / 1e9),
        )
    return not quantised and wanted <= 0.8 * free


def _write(folder: Path, longest: int) -> None:
    from expandr_core.generation.engine import Request
    from expandr_core.generation.transformers_engine import TransformersGenerator
    from expandr_core.options.generation import SamplingOptions

    requests = [Request("q2d", query, "", (0, 1), (1.0, 0.0)) for query in QUERIES]
    for _ in TransformersGenerator(folder, "cpu").generate(
        requests, SamplingOptions(max_new_tokens=2), longest
    ):
        pass
