"""Preference pairs from elsewhere: JSON arrays, or JSON lines, of rows in one of these layouts.

conversations, chosen, rejected    the paper's releases and LLaMA-Factory: turns are {"from", "value"}
prompt, chosen, rejected           TRL: strings, or lists of messages {"role", "content"}
chosen, rejected                   TRL without a prompt: both lists begin with the same user turn

A row has one turn of the user and two answers. A pair that we have exported also says under "expandr"
what the layouts have no place for (`Own`), so that nothing is lost on its way back.
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from expandr_core.data.fields import BadRow, checked_text, parse_object
from expandr_core.data.rows import GZIP, RawFile, Reader, hub_copy
from expandr_core.errors import DataError, first_line
from expandr_core.store.filesystems import kind_of, open_filesystem

ENDINGS = (".json", ".jsonl")
OWN = "expandr"
_DEV = {"dev", "eval", "evaluation", "test", "val", "valid", "validation"}
_USER, _ASSISTANT = {"human", "user"}, {"gpt", "assistant"}


class OwnSide(BaseModel):
    """What we know of one text of a pair; see `records.PAIR_SIDE`."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    sample: int | None
    finish_reason: Literal["stop", "length"]
    reward: float | None
    similarity: float | None


class Own(BaseModel):
    """What our export says of a pair beside its texts; see `records.PAIRS`.

    `measured` are the further columns of pairs whose reward measures retrieval.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    query_id: str
    split: Literal["train", "dev"]
    margin: float | None
    measured: dict[str, float] = {}
    chosen: OwnSide
    rejected: OwnSide


class GivenPair(NamedTuple):
    """A pair as it was given, without white space around the answers.

    Attributes:
        turn: of the user, as the model reads it, before the chat template.
        chosen: the better answer.
        rejected: the other.
        own: what our own export adds, or None.
    """

    turn: str
    chosen: str
    rejected: str
    own: Own | None


def pairs_files(location: str) -> list[RawFile]:
    """Find the pairs: all `*.json` and `*.jsonl` of a folder, sorted by name, or the one file named.

    They may be packed, with the suffix .gz; a file that is there both ways is read once.

    Raises:
        DataError: if there are none.
    """
    if not location:
        raise DataError("there are no pairs to import; name them in data.pairs")
    location = hub_copy(location, [f"*{ending}*" for ending in ENDINGS])
    filesystem, path = open_filesystem(location)
    match kind_of(filesystem, path):
        case "file":
            paths = [path]
        case "directory":
            paths = [found.rstrip("/") for found in filesystem.ls(path, detail=False)]
        case _:
            raise DataError(f"{location}: no such file or folder; correct data.pairs")
    packed_first = sorted(paths, key=lambda found: not found.endswith(GZIP))
    names = {found.rsplit("/", 1)[-1].removesuffix(GZIP): found for found in packed_first}
    files = [
        RawFile(filesystem, names[name], f"pairs/{name}")
        for name in sorted(names)
        if name.endswith(ENDINGS) and not name.startswith(".")
    ]
    if not files:
        raise DataError(f"{location}: no pairs; name *.json or *.jsonl files in data.pairs")
    return files


def splits_of(files: list[RawFile]) -> dict[str, str]:
    """Return "train" or "dev" by file name, if the names tell both; else nothing.

    >>> def named(*names): return [RawFile(None, name, f"pairs/{name}") for name in names]
    >>> splits_of(named("dpo_dev.json", "dpo_train.json"))
    {'pairs/dpo_dev.json': 'dev', 'pairs/dpo_train.json': 'train'}
    >>> splits_of(named("pairs.json"))
    {}
    """
    words = {file.name: set(re.split(r"[^a-z]+", file.source.lower())) for file in files}
    splits = {name: "dev" if own & _DEV else "train" for name, own in words.items()}
    return splits if len(set(splits.values())) == 2 else {}


def read_pairs(reader: Reader, file: RawFile) -> Iterator[GivenPair]:
    """Yield the pairs of a file, in its order.

    Raises:
        DataError: for a bad row (if refused), or if no row remains.
    """
    with file.open() as opened:
        array = opened.read(256).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
    if array:
        return reader.each(file, _elements(reader, file), lambda _, row: pair_of(row))
    return reader.rows(file, lambda _, line: pair_of(parse_object(line)))


def _elements(reader: Reader, file: RawFile) -> Iterator[tuple[int, Any]]:
    """Yield number and content of each element of a JSON array."""
    reader.verify(file)
    with file.open() as opened:
        try:
            rows = json.loads(opened.read().decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}: no JSON array in UTF-8 ({error}); get it again") from error
    yield from enumerate(rows, 1)


def pair_of(record: Any) -> GivenPair:
    """Return the pair of a row.

    Raises:
        BadRow: if it cannot be told what the user says, or what the answers are.

    >>> pair_of({"prompt": "Why?", "chosen": "Because.", "rejected": "Why not?"})[:3]
    ('Why?', 'Because.', 'Why not?')
    """
    if not isinstance(record, dict):
        raise BadRow("not a JSON object", "write an object for each pair")
    for side in ("chosen", "rejected"):
        if side not in record:
            raise BadRow(f"no {side}", "write conversations (or prompt), chosen and rejected")
    chosen, rejected = (_turns(record[side], side, _ASSISTANT) for side in ("chosen", "rejected"))
    asked = next((name for name in ("conversations", "prompt") if name in record), "")
    if asked:
        said = [_turns(record[asked], asked, _USER)] * 2
        answers = [chosen, rejected]
    else:
        said, answers = ([turns[:-1] for turns in (chosen, rejected)],
                         [turns[-1:] for turns in (chosen, rejected)])  # fmt: skip
    if said[0] != said[1]:
        raise BadRow("chosen and rejected begin differently", "give both the same prompt")
    speakers = [[who for who, _ in turns] for turns in (said[0], *answers)]
    if record.get("system") or speakers != [["user"], ["assistant"], ["assistant"]]:
        raise BadRow(
            "not one turn of the user and two answers",
            "give the user's turn alone, without system turns and earlier turns, as conversations or "
            "prompt",
        )
    try:
        own = Own(**record[OWN]) if record.get(OWN) else None
    except (TypeError, ValidationError) as error:
        raise BadRow(
            f"{OWN} is not as our export writes it", "delete it", first_line(error)
        ) from None
    return GivenPair(said[0][0][1], answers[0][0][1].strip(), answers[1][0][1].strip(), own)


def _turns(value: Any, name: str, speakers: set[str]) -> list[tuple[str, str]]:
    """Return who says what in a field: a string is one turn of `speakers`."""
    if isinstance(value, str):
        return [("user" if speakers is _USER else "assistant", checked_text(value, name))]
    turns = []
    for each in value if isinstance(value, list) else [value]:
        if not isinstance(each, dict):
            raise BadRow(f"{name} is neither a text nor turns", "write a string, or messages")
        who = each.get("from", each.get("role"))
        said = checked_text(each.get("value", each.get("content")), name)
        role = "user" if who in _USER else "assistant" if who in _ASSISTANT else str(who)
        turns.append((role, said))
    return turns
