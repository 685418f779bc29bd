"""Preference pairs as token ids: the prompt as in generation, and both texts as the model wrote them."""

from typing import TYPE_CHECKING, Any

from expandr_core.errors import DataError
from expandr_core.generation.control_tokens import encode_text
from expandr_core.generation.prompts import fit_prompt, turn_end_id
from expandr_core.generation.thoughts import MARKERS, marker_at_end
from expandr_core.options.generation import Prompt, PromptOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def preference_ids(
    tokenizer: "PreTrainedTokenizerBase",
    row: dict[str, Any],
    asked: Prompt | PromptOptions,
    *,
    max_prompt_tokens: int,
    max_tokens: int,
) -> dict[str, list[int]]:
    """Tokenise a pair; texts are cut to fit, and end the turn only if the model did.

    Returns:
        `prompt_ids`, `chosen_ids`, `rejected_ids`; the prompt and either text fit `max_tokens`.

    Raises:
        DataError: if the prompt leaves no room for a text.
    """
    prompt = fit_prompt(tokenizer, asked, row["query"], "", max_prompt_tokens).ids
    room = max_tokens - len(prompt)
    if room < 1:
        raise DataError(
            f"query {row['query_id']!r}: its prompt has {len(prompt)} tokens and dpo.max_tokens is "
            f"{max_tokens}; raise it, or lower expand.prompt.max_tokens"
        )
    ids = {"prompt_ids": prompt}
    end = MARKERS.get(marker_at_end(tokenizer, prompt), "")  # a text comes after the thoughts
    before = tokenizer.encode(f"\n{end}\n\n", add_special_tokens=False) if end else []
    for side in ("chosen", "rejected"):
        text = before + encode_text(tokenizer, row[f"{side}_text"])
        if row[f"{side}_finish_reason"] == "stop":
            text.append(turn_end_id(tokenizer))
        ids[f"{side}_ids"] = text[:room]
    return ids
