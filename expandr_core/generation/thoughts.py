"""Remove the thoughts ("reasoning") that some models write before a text."""

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARKERS = {  # begin and end of a block of thoughts
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "<seed:think>": "</seed:think>",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "[THINK]": "[/THINK]",
    "\u25c1think\u25b7": "\u25c1/think\u25b7",
}
TAIL = 12  # tokens at the end of a prompt that are searched for a marker


def marker_at_end(tokenizer: "PreTrainedTokenizerBase", prompt: list[int]) -> str:
    """Return the marker with which a prompt ends, be it a begin or an end of thoughts, or ""."""
    end = str(tokenizer.decode(prompt[-TAIL:], skip_special_tokens=False)).rstrip()
    both = [*MARKERS, *MARKERS.values()]
    return next((marker for marker in both if end.endswith(marker)), "")


def known_markers(tokenizer: "PreTrainedTokenizerBase") -> set[str]:
    """Return the begin markers whose end the tokenizer or its chat template has."""
    template = str(tokenizer.chat_template or "")
    vocabulary = {token.content for token in tokenizer.added_tokens_decoder.values()}
    return {begin for begin, end in MARKERS.items() if end in vocabulary or end in template}


def decode_with_markers(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    """Decode a text without its special tokens, but with markers, some of which are special tokens."""
    added = tokenizer.added_tokens_decoder
    markers = {*MARKERS, *MARKERS.values()}
    special = {number for number, token in added.items() if token.special}
    hidden = {number for number in special if added[number].content not in markers}
    if hidden == special:
        return str(tokenizer.decode(ids, skip_special_tokens=True))
    kept = [number for number in ids if number not in hidden]
    return str(tokenizer.decode(kept, skip_special_tokens=False))


def remove_thoughts(
    text: str, prompt_marker: str = "", markers: Collection[str] = ()
) -> tuple[str, bool]:
    r"""Remove the thoughts at the beginning of a text, and the space after them.

    Thoughts without an end were cut by the token limit, so no text remains.

    Args:
        text: what the model wrote.
        prompt_marker: the marker with which the prompt ended.
        markers: begin markers of this model. A text with an end marker but no begin marker starts
            with thoughts, unless the prompt has ended them already.

    Returns:
        The remaining text, and whether there were thoughts.

    >>> remove_thoughts("<think>\nA wing?\n</think>\n\nIt lifts.")
    ('It lifts.', True)
    >>> remove_thoughts("A wing, perhaps", prompt_marker="<think>")
    ('', True)
    """
    if prompt_marker in MARKERS:
        text = prompt_marker + text
    elif not prompt_marker:
        text = _with_begin(text, markers)
    found = False
    while begin := next((mark for mark in MARKERS if text.lstrip().startswith(mark)), None):
        found = True
        text = text.lstrip()[len(begin) :].partition(MARKERS[begin])[2].lstrip()
    return text, found


def _with_begin(text: str, markers: Collection[str]) -> str:
    for begin in sorted(markers):
        before, end, _ = text.partition(MARKERS[begin])
        if end and begin not in before:
            return begin + text
    return text
