"""Tokenise queries and passages as plain text, even if they spell a control token of the model.

A tokenizer finds its control tokens (`<s>`, the token that ends a turn) wherever a text spells them.
Such texts are encoded by a copy of the tokenizer in which every control token has another name that no
text contains; in a chat, the tokens that the template writes are renamed too. All else, including merges
across the spelled tokens, is as in the original tokenizer.
"""

import json
import re
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_MARK = "\U0010fffd"  # a private character that begins the other names; removed from texts
_PRIVATE = range(0x100000, 0x10FFFD)  # characters that stand for control tokens spelled by a text
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # how SentencePiece names a byte
_BRACKETS = set("<[{|")


@lru_cache(4)
def control_tokens(tokenizer: "PreTrainedTokenizerBase") -> dict[int, str]:
    """Return the tokens that mean more than their characters, by id.

    These are special tokens, and other added tokens that the chat template writes or that are in
    brackets (`<think>`, `<|fim_prefix|>`), but not words, spaces and names of bytes.
    """
    template = str(tokenizer.chat_template or "")
    return {
        number: token.content
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.content.strip()
        and not _BYTE.fullmatch(token.content)
        and (token.special or token.content in template or _BRACKETS & set(token.content))
    }


def encode_text(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Return the token ids of a text, none of which is a control token."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    if not _spells_any(tokenizer, text, ids):
        return ids
    renamed = _renamed(tokenizer)
    if renamed is None:
        stand_ins = _stand_ins(tokenizer, text)
        return _in_pieces(tokenizer, _replace(text, stand_ins), stand_ins)
    return renamed.encode(text.replace(_MARK, ""), add_special_tokens=False).ids


def encode_chat(tokenizer: "PreTrainedTokenizerBase", content: str) -> list[int]:
    """Return the token ids of a user turn, ready for the answer; the content is plain text."""
    ids = tokenizer.encode(content, add_special_tokens=False)
    if not _spells_any(tokenizer, content, ids):
        return tokenizer.encode(_render(tokenizer, content), add_special_tokens=False)
    stand_ins = _stand_ins(tokenizer, content)
    chat = _render(tokenizer, _replace(content.replace(_MARK, ""), stand_ins))
    renamed = _renamed(tokenizer)
    if renamed is None:
        return _in_pieces(tokenizer, chat, stand_ins)
    chat = _pattern(tokenizer).sub(lambda token: _MARK + token[0], chat)
    chat = _replace(chat, {private: token for token, private in stand_ins.items()})
    return renamed.encode(chat, add_special_tokens=False).ids


def _render(tokenizer: "PreTrainedTokenizerBase", content: str) -> str:
    turn = [{"role": "user", "content": content}]
    chat = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    return cast(str, chat)


def _spells_any(tokenizer: "PreTrainedTokenizerBase", text: str, ids: list[int]) -> bool:
    """Tell whether a text spells a control token, before or after normalisation."""
    return not _control_ids(tokenizer).isdisjoint(ids) or bool(_pattern(tokenizer).search(text))


@lru_cache(4)
def _control_ids(tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    unknown = cast("int | None", tokenizer.unk_token_id)  # any text may contain it
    return frozenset(control_tokens(tokenizer)) - {unknown}


@lru_cache(4)
def _pattern(tokenizer: "PreTrainedTokenizerBase") -> re.Pattern[str]:
    longest_first = sorted(control_tokens(tokenizer).values(), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _stand_ins(tokenizer: "PreTrainedTokenizerBase", text: str) -> dict[str, str]:
    """Choose a private character that the text lacks for each control token that it spells."""
    tokens: list[str] = sorted(set(_pattern(tokenizer).findall(text)), key=len, reverse=True)
    free = (chr(code) for code in _PRIVATE if chr(code) not in text)
    return dict(zip(tokens, islice(free, len(tokens)), strict=True))


def _replace(text: str, replacements: dict[str, str]) -> str:
    for old, new in replacements.items():
        text = text.replace(old, new)
    return text


def _in_pieces(
    tokenizer: "PreTrainedTokenizerBase", text: str, hidden: dict[str, str]
) -> list[int]:
    """Encode a text in pieces that cut each hidden token, for lack of a `tokenizers` backend."""
    broken = text
    for token, private in hidden.items():
        broken = broken.replace(private, f"{token[:1]}{_MARK}{token[1:]}")
    pieces = (piece for piece in broken.split(_MARK) if piece)
    return [i for piece in pieces for i in tokenizer.encode(piece, add_special_tokens=False)]


@lru_cache(4)
def _renamed(tokenizer: "PreTrainedTokenizerBase") -> "Tokenizer | None":
    """Return the copy with other names, or None if the tokenizer has no `tokenizers` backend."""
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        return None
    state = json.loads(backend.to_str())
    names = {token: _MARK + token for token in control_tokens(tokenizer).values()}
    for token in state["added_tokens"]:
        if token["content"] in names:
            token |= {"content": names[token["content"]], "normalized": False}
    _rename_pieces(state["model"], names)
    renamed = Tokenizer.from_str(json.dumps(state))
    renamed.no_truncation()
    renamed.no_padding()
    renamed.encode_special_tokens = False
    return renamed


def _rename_pieces(model: dict[str, Any], names: dict[str, str]) -> None:
    """Rename the tokens in the vocabulary too, so that plain text never becomes one of them."""
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(piece, piece): id_ for piece, id_ in model["vocab"].items()}
    else:  # Unigram: with scores
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        pairs = (pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"])
        model["merges"] = [pair for pair in pairs if not {*pair, "".join(pair)} & names.keys()]
