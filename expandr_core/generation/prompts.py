"""The prompts, as token ids, and the removal of the preamble a model puts before what was asked.

The wording is the paper's code (`promptor.py`). Generation and DPO call the same `prompt_ids`, so
both see identical prompts with exactly one beginning-of-sequence token (the reference had two).
"""

import re
from typing import TYPE_CHECKING, cast

from expandr_core.errors import DataError
from expandr_core.generation.control_tokens import control_tokens, encode_chat, encode_text
from expandr_core.options.generation import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPTS: dict[Prompt, str] = {
    "q2d": "Please write a passage to answer the question.\nQuestion: {query}\nPassage:",
    "q2a": "You are given a query and a related document. Based on the query, generate a direct and "
    "relevant answer using the information in the document. If the query is a statement, expand on "
    "it. If it is a question, provide a direct answer. Avoid any extra description or irrelevant "
    "content.\nQuery: {query}\nRelated Document: {passage}\nAnswer:",
    "q2q": "Output the rewrite of input query.\nQuery: {query}\nOutput:",
    "q2e": "Write a list of keywords for the given query:\nQuery: {query}\nKeywords:",
    "q2c": "Answer the following query:\n{query}\nGive the rationale before answering.",
}

# "Here is a passage that answers your question:" and its kin; the reference missed
# "Here is a passage:", matched anywhere, and cut what followed a second match.
_PREAMBLE = re.compile(
    r"""^\s*here(?:\s+is|['\u2019]s)\s+(?:a|the)\s+(?:possible\s+|potential\s+)?passage
    (?:\s+(?:that\s+(?:attempts\s+to\s+answer|answers)|to\s+answer|answering)
       \s+(?:the|your)\s+question)?\s*:\s*""",
    re.IGNORECASE | re.VERBOSE,
)

_ANSWER = "\ue000"  # of the assistant, where the end of a turn is looked for


def render_prompt(name: Prompt, query: str, passage: str = "") -> str:
    r"""Fill in a prompt's wording: the user's turn, before the chat template.

    >>> render_prompt("q2e", "moon dust")
    'Write a list of keywords for the given query:\nQuery: moon dust\nKeywords:'
    """
    texts = {"query": query, "passage": passage}
    return re.sub(r"\{(query|passage)\}", lambda field: texts[field[1]], PROMPTS[name])


def remove_preamble(text: str) -> str:
    """Remove a leading "Here is a passage ...:", in any case, and the space around the text.

    Applying it twice changes nothing; the phrase inside a text is left alone.

    >>> remove_preamble("Here's a possible passage: Dust is grey. Here is a passage: no.")
    'Dust is grey. Here is a passage: no.'
    """
    text = text.strip()
    while match := _PREAMBLE.match(text):
        text = text[match.end() :].strip()
    return text


def prompt_ids(tokenizer: "PreTrainedTokenizerBase", content: str) -> list[int]:
    """Render one user turn through the chat template, as token ids, ready to be continued.

    Raises:
        DataError: if the model has no chat template, or its template writes the beginning of the
            sequence twice.
    """
    if not tokenizer.chat_template:
        raise DataError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template; use an instruction-tuned "
            "model, or add chat_template.jinja to its folder"
        )
    ids = encode_chat(tokenizer, content)
    bos = cast(int | None, tokenizer.bos_token_id)
    if bos is None:
        return ids
    control = control_tokens(tokenizer)
    first = next((token for token in ids if token in control), None)
    if first != bos and tokenizer("a").input_ids[0] == bos:
        ids.insert(0, bos)  # a template that leaves it to the tokenizer
    # some models open each turn with the token that begins a sequence, or end it so
    begins = next((n for n, token in enumerate(ids) if token != bos), len(ids))
    if begins > 1:
        raise DataError(
            f"{tokenizer.name_or_path}: the chat template gives {begins} beginning-of-sequence tokens; "
            "a prompt must begin with exactly one, so correct chat_template.jinja"
        )
    return ids


def fitted_prompt_ids(
    tokenizer: "PreTrainedTokenizerBase", name: Prompt, query: str, passage: str, max_tokens: int
) -> list[int]:
    """Return only the token ids of `fitted_turn`."""
    return fitted_turn(tokenizer, name, query, passage, max_tokens)[1]


def fitted_turn(
    tokenizer: "PreTrainedTokenizerBase", name: Prompt, query: str, passage: str, max_tokens: int
) -> tuple[str, list[int]]:
    """Render a prompt of at most `max_tokens` by shortening the passage, then the query, at its end.

    The instruction and the header of the answer always stay (the reference cut them off).

    Returns:
        The user's turn, before the chat template, and the whole prompt as token ids.

    Raises:
        DataError: if the prompt is too long even without both.
    """
    texts = {"query": query, "passage": passage}
    turn = render_prompt(name, query, passage)
    ids = prompt_ids(tokenizer, turn)
    for shortened in ("passage", "query"):
        if len(ids) <= max_tokens:
            break
        tokens = encode_text(tokenizer, texts[shortened])
        while tokens and len(ids) > max_tokens:
            tokens = tokens[: max(0, len(tokens) - (len(ids) - max_tokens))]
            text = cast(str, tokenizer.decode(tokens, skip_special_tokens=True))
            texts[shortened] = text.rstrip("\ufffd")  # half of a character
            turn = render_prompt(name, texts["query"], texts["passage"])
            ids = prompt_ids(tokenizer, turn)
    if len(ids) > max_tokens:
        raise DataError(
            f"prompt {name}: {len(ids)} tokens without query and passage; raise max_prompt_tokens "
            f"above {max_tokens}"
        )
    return turn, ids


def turn_end_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Find the token that ends the assistant's turn in the chat template (`<|eot_id|>` and kin).

    It is the first token the template writes after the assistant's words; where the template writes
    none, the tokenizer's end of sequence.
    """
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _ANSWER}]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False)
    assert isinstance(rendered, str)
    after = rendered.rpartition(_ANSWER)[2].strip() if _ANSWER in rendered else ""
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    for token in tokenizer.encode(after, add_special_tokens=False):
        if token in special:
            return token
    if tokenizer.eos_token_id is None:
        raise DataError(f"{tokenizer.name_or_path}: no token ends a turn; set eos_token")
    return cast(int, tokenizer.eos_token_id)
