"""Preference pairs as token ids: the prompt as in generation, and both texts as the model wrote them."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from expandr_core.errors import DataError
from expandr_core.generation.control_tokens import encode_text
from expandr_core.generation.prompts import fit_prompt, prompt_ids, turn_end_id
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
    """Tokenise a pair as `completion_ids` does.

    Returns:
        `prompt_ids`, `chosen_ids`, `rejected_ids`.

    Raises:
        DataError: if the prompt leaves no room for a text.
    """
    texts = [(row[f"{side}_text"], row[f"{side}_finish_reason"]) for side in ("chosen", "rejected")]
    limits = {"max_prompt_tokens": max_prompt_tokens, "max_tokens": max_tokens}
    prompt, (chosen, rejected) = completion_ids(tokenizer, row, texts, asked, **limits)
    return {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}


def completion_ids(
    tokenizer: "PreTrainedTokenizerBase",
    row: dict[str, Any],
    texts: Iterable[tuple[str, str]],
    asked: Prompt | PromptOptions,
    *,
    max_prompt_tokens: int,
    max_tokens: int,
) -> tuple[list[int], list[list[int]]]:
    """Tokenise a prompt and texts for it; texts are cut to fit, and end the turn only if the model did.

    Args:
        tokenizer: of the language model.
        row: with `query_id` and `query`, which the texts are for.
        texts: each with its finish reason.
        asked: the prompt that they were written for.
        max_prompt_tokens: a longer prompt is shortened, as in generation.
        max_tokens: most that the prompt and any text have together.

    Raises:
        DataError: if the prompt leaves no room for a text.
    """
    if turn := row.get("prompt_text"):  # of an imported pair, which is taken as it is
        prompt = prompt_ids(tokenizer, turn)
    else:
        prompt = fit_prompt(tokenizer, asked, row["query"], "", max_prompt_tokens).ids
    room = max_tokens - len(prompt)
    if room < 1:
        raise DataError(
            f"query {row['query_id']!r}: its prompt has {len(prompt)} tokens and dpo.max_tokens is "
            f"{max_tokens}; raise it, or lower expand.prompt.max_tokens"
        )
    end = MARKERS.get(marker_at_end(tokenizer, prompt), "")  # a text comes after the thoughts
    before = tokenizer.encode(f"\n{end}\n\n", add_special_tokens=False) if end else []
    completions = []
    for text, finish_reason in texts:
        ids = before + encode_text(tokenizer, text)
        if finish_reason == "stop":
            ids.append(turn_end_id(tokenizer))
        completions.append(ids[:room])
    return prompt, completions
