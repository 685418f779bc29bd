"""The prompts as token ids, and removal of the lead-in that models put before their text.

The wording is that of the paper's code (`promptor.py`). Generation and DPO call the same `prompt_ids`,
so both see identical prompts with exactly one beginning-of-sequence token (the paper's code had two).
"""

import re
from typing import TYPE_CHECKING, NamedTuple, cast

from expandr_core.errors import DataError
from expandr_core.generation.control_tokens import control_tokens, encode_chat, encode_text
from expandr_core.options.generation import OWN_PROMPT, Prompt, PromptName, PromptOptions

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

# "Here is a passage that answers your question:" and variants; the paper's code missed
# "Here is a passage:", matched anywhere in the text, and cut what followed a second match.
_HERE = r"here(?:\s+is|\s+are|['\u2019]s|['\u2019]re)\s"
_PASSAGE = r"""here(?:\s+is|['\u2019]s)\s+(?:a|the)\s+(?:possible\s+|potential\s+)?passage
    (?:\s+(?:that\s+(?:attempts\s+to\s+answer|answers)|to\s+answer|answering)
       \s+(?:the|your)\s+question)?\s*:"""


def _lead_ins(about: str, label: str) -> str:
    """Match "Here is ... about ...:", and a label such as "Answer:" or "**Answer:**"."""
    here = rf"{_HERE}[^:\n]{{0,80}}?\b(?:{about})\b[^:\n]{{0,120}}:"
    return rf"{_PASSAGE}|{here}|(?P<mark>[*_]*)(?:{label})(?::(?P=mark)|(?P=mark)\s*:)"


_PREAMBLES: dict[str, re.Pattern[str]] = {
    name: re.compile(rf"(?:{pattern})\s*", re.IGNORECASE | re.VERBOSE)
    for name, pattern in {
        "q2d": _PASSAGE,
        "q2a": _lead_ins("answer|response", r"(?:the\s+)?answer"),
        "q2q": _lead_ins(
            "re-?writ\\w+|re-?phras\\w+|reformulat\\w+|query|question",
            r"output|rewrite|(?:rewritten|rephrased|reformulated)\s+(?:query|question)",
        ),
        "q2e": _lead_ins("keywords?|key\\s+words?", r"(?:list\s+of\s+)?keywords"),
        "q2c": _lead_ins("rationale|reasoning|explanation|answer", r"(?:the\s+)?rationale"),
        OWN_PROMPT: rf"{_HERE}[^:\n]{{1,200}}:",
    }.items()
}

_ANSWER = "\ue000"  # stands for the assistant's words when the end of a turn is looked up


def wording_of(prompt: Prompt | PromptOptions) -> str:
    """Return a prompt's wording, with {query} and perhaps {passage} where these go."""
    if not isinstance(prompt, PromptOptions):
        return PROMPTS[prompt]
    return prompt.text if prompt.name == "own" else PROMPTS[prompt.name]


def render_prompt(prompt: Prompt | PromptOptions, query: str, passage: str = "") -> str:
    r"""Fill in a prompt's wording, which is the user's turn, before the chat template.

    Other braces stay as they are; in a prompt of one's own also {passage}.

    >>> render_prompt("q2e", "moon dust")
    'Write a list of keywords for the given query:\nQuery: moon dust\nKeywords:'
    >>> render_prompt(PromptOptions(text='{"about": "{query}"} {passage}'), "moon dust")
    '{"about": "moon dust"} {passage}'
    """
    texts = {"query": query, "passage": passage}
    own = isinstance(prompt, PromptOptions) and prompt.name == OWN_PROMPT
    fields = r"\{(query)\}" if own else r"\{(query|passage)\}"
    return re.sub(fields, lambda field: texts[field[1]], wording_of(prompt))


def remove_preamble(text: str, name: PromptName = "q2d") -> str:
    """Remove a lead-in such as "Here is a passage ...:", in any case, and the space around the text.

    Each kind of text has lead-ins of its own, such as "Answer:" or "Here are the keywords:", besides the
    passage's; what a prompt of one's own asks for has any "Here is ...:" or "Here are ...:" on one line.
    The same phrase inside a text stays, and removing twice changes nothing.

    >>> remove_preamble("Here's a possible passage: Dust is grey. Here is a passage: no.")
    'Dust is grey. Here is a passage: no.'
    >>> remove_preamble("Here is the rewritten query:\\n\\nmoon dust colour", "q2q")
    'moon dust colour'
    """
    text = text.strip()
    while match := _PREAMBLES[name].match(text):
        text = text[match.end() :].strip()
    return text


def prompt_ids(tokenizer: "PreTrainedTokenizerBase", content: str) -> list[int]:
    """Render one user turn through the chat template, as token ids for the model to continue.

    Raises:
        DataError: if the model has no chat template, or one that begins the sequence twice.
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
        ids.insert(0, bos)  # the template leaves it to the tokenizer
    # count at the beginning only: some models also open or end each turn with this token
    begins = next((n for n, token in enumerate(ids) if token != bos), len(ids))
    if begins > 1:
        raise DataError(
            f"{tokenizer.name_or_path}: the chat template gives {begins} beginning-of-sequence tokens; "
            "a prompt must begin with exactly one, so correct chat_template.jinja"
        )
    return ids


class FittedPrompt(NamedTuple):
    """A prompt within its limit: the user's turn as text, and the whole prompt as token ids."""

    turn: str
    ids: list[int]


def fit_prompt(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Prompt | PromptOptions,
    query: str,
    passage: str,
    max_tokens: int,
) -> FittedPrompt:
    """Render a prompt of at most `max_tokens`; if it is longer, cut the passage, then the query.

    Both lose their end. The instruction and the header of the answer always stay (the paper's code
    cut them off).

    Raises:
        DataError: if the prompt is too long even without query and passage.
    """
    texts = {"query": query, "passage": passage}
    turn = render_prompt(prompt, query, passage)
    ids = prompt_ids(tokenizer, turn)
    for shortened in ("passage", "query"):
        if len(ids) <= max_tokens:
            break
        tokens = encode_text(tokenizer, texts[shortened])
        while tokens and len(ids) > max_tokens:
            tokens = tokens[: max(0, len(tokens) - (len(ids) - max_tokens))]
            text = cast(str, tokenizer.decode(tokens, skip_special_tokens=True))
            texts[shortened] = text.rstrip("\ufffd")  # part of a character
            turn = render_prompt(prompt, texts["query"], texts["passage"])
            ids = prompt_ids(tokenizer, turn)
    if len(ids) > max_tokens:
        name = prompt.name if isinstance(prompt, PromptOptions) else prompt
        raise DataError(
            f"prompt {name}: {len(ids)} tokens without query and passage; shorten it, or raise "
            f"expand.prompt.max_tokens ({max_tokens}) to that and room for them"
        )
    return FittedPrompt(turn, ids)


def turn_end_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Find the token that ends the assistant's turn, such as `<|eot_id|>`.

    It is the first special token that the chat template writes after the assistant's words, or the
    tokenizer's end of sequence if the template writes none.

    Raises:
        DataError: if there is neither.
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
