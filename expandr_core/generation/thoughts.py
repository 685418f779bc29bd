"""The thoughts that some models write before a text are no part of it."""

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARKERS = {  # what begins a block of thoughts, and what ends it
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
TAIL = 12  # tokens at a prompt's end among which such a marker is


def opened_by(tokenizer: "PreTrainedTokenizerBase", prompt: list[int]) -> str:
    """Return the marker with which a prompt ends: one that begins thoughts, or ends them, or none."""
    end = str(tokenizer.decode(prompt[-TAIL:], skip_special_tokens=False)).rstrip()
    both = [*MARKERS, *MARKERS.values()]
    return next((marker for marker in both if end.endswith(marker)), "")


def known_markers(tokenizer: "PreTrainedTokenizerBase") -> set[str]:
    """Return the markers, of those that begin thoughts, that the tokenizer or its template has."""
    template = str(tokenizer.chat_template or "")
    vocabulary = {token.content for token in tokenizer.added_tokens_decoder.values()}
    return {begin for begin, end in MARKERS.items() if end in vocabulary or end in template}


def without_special(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    """Decode a text without special tokens, but with the markers of thoughts, special as some are."""
    added = tokenizer.added_tokens_decoder
    markers = {*MARKERS, *MARKERS.values()}
    special = {number for number, token in added.items() if token.special}
    hidden = {number for number in special if added[number].content not in markers}
    if hidden == special:
        return str(tokenizer.decode(ids, skip_special_tokens=True))
    kept = [number for number in ids if number not in hidden]
    return str(tokenizer.decode(kept, skip_special_tokens=False))


def remove_thoughts(text: str, opened: str = "", known: Collection[str] = ()) -> tuple[str, bool]:
    r"""Remove the thoughts that a text begins with, and the space after them.

    Thoughts without an end were cut: nothing is left.

    Args:
        text: what the model wrote.
        opened: the marker with which its prompt ended.
        known: markers that the model is known to use. A text that has one's end and not its beginning
            begins with thoughts, unless the prompt has ended them.

    Returns:
        The rest, and whether there were thoughts.

    >>> remove_thoughts("<think>\nA wing?\n</think>\n\nIt lifts.")
    ('It lifts.', True)
    >>> remove_thoughts("A wing, perhaps", opened="<think>")
    ('', True)
    """
    if opened in MARKERS:
        text = opened + text
    elif not opened:
        text = _with_beginning(text, known)
    found = False
    while begin := next((mark for mark in MARKERS if text.lstrip().startswith(mark)), None):
        found = True
        text = text.lstrip()[len(begin) :].partition(MARKERS[begin])[2].lstrip()
    return text, found


def _with_beginning(text: str, known: Collection[str]) -> str:
    for begin in sorted(known):
        before, end, _ = text.partition(MARKERS[begin])
        if end and begin not in before:
            return begin + text
    return text
