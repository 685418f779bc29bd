"""Preference pairs in the layouts of the release and of TRL, and rows that cannot be told."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from released import PAIRS, pair, write_array, write_lines

from expandr_core.data.fields import BadRow
from expandr_core.data.formats.pairs import pair_of, pairs_files, read_pairs
from expandr_core.data.rows import Reader
from expandr_core.errors import DataError

USER, BEST = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}
WORST = {"role": "assistant", "content": "Who knows?\n"}
LAYOUTS: dict[str, dict[str, Any]] = {
    "the release": {
        "conversations": [{"from": "human", "value": "Why?"}],
        "chosen": {"from": "gpt", "value": "Because."},
        "rejected": {"from": "gpt", "value": " Who knows?"},
    },
    "strings": {"prompt": "Why?", "chosen": "Because.", "rejected": "Who knows?"},
    "messages": {"prompt": [USER], "chosen": [BEST], "rejected": [WORST]},
    "implicit prompt": {"chosen": [USER, BEST], "rejected": [USER, WORST], "score_chosen": 1.5},
}


@pytest.mark.parametrize("row", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_pair_is_read_in_each_layout(row):
    assert pair_of(row) == ("Why?", "Because.", "Who knows?", None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"chosen": None}, "chosen is null|neither a text nor turns"),
        ({"conversations": []}, "not one turn of the user"),
        ({"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}]},
         "not one turn of the user and two answers; .*without system turns"),
        ({"chosen": {"from": "human", "value": "a"}}, "not one turn of the user and two answers"),
        ({"chosen": {"from": "gpt", "value": 3}}, "chosen is not a string"),
        ({"expandr": {"query_id": 3}}, "expandr is not as our export writes it"),
        ({"system": "You are brief."}, "not one turn of the user and two answers; give the user's"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_told_is_refused_by_name(change, reason):
    with pytest.raises(BadRow, match=reason):
        pair_of(LAYOUTS["the release"] | change)


def test_a_row_without_a_prompt_is_told_where_it_goes():
    with pytest.raises(BadRow, match=r"the user's turn alone, .* as conversations or prompt"):
        pair_of({"instruction": "Why?", "chosen": "Because.", "rejected": "Who knows?"})


def test_different_prompts_of_the_two_sides_are_refused():
    other = {"role": "user", "content": "Who?"}
    with pytest.raises(BadRow, match="begin differently"):
        pair_of({"chosen": [USER, BEST], "rejected": [other, WORST]})


def test_arrays_lines_and_packed_files_hold_the_same_pairs(tmp_path: Path):
    array, lines = write_array(tmp_path / "a.json", PAIRS), write_lines(tmp_path / "b.jsonl", PAIRS)
    packed = tmp_path / "c.json.gz"
    packed.write_bytes(gzip.compress(array.read_bytes()))
    found = [list(read_pairs(Reader(), *pairs_files(str(path)))) for path in (array, lines, packed)]
    assert len(found[0]) == 30
    assert found[0] == found[1] == found[2]
    assert [file.name for file in pairs_files(str(tmp_path))] == [
        "pairs/a.json", "pairs/b.jsonl", "pairs/c.json"
    ]  # fmt: skip


def test_bad_elements_of_an_array_are_named_or_counted(tmp_path: Path):
    path = write_array(tmp_path / "a.json", [pair(0), "no pair", {"chosen": "c"}])
    [file] = pairs_files(str(path))
    with pytest.raises(DataError, match=r"a\.json:2: not a JSON object"):
        list(read_pairs(Reader(), file))
    reader = Reader("skip")
    assert len(list(read_pairs(reader, file))) == 1
    assert reader.counts == {
        "skipped/pairs/a.json/not a JSON object": 1,
        "skipped/pairs/a.json/no rejected": 1,
    }


def test_a_broken_array_and_a_missing_file_are_named(tmp_path: Path):
    path = tmp_path / "a.json"
    for broken in (json.dumps(PAIRS)[:-9], "[" * 100_000):
        path.write_text(broken)
        with pytest.raises(DataError, match=r"a\.json: no JSON array"):
            list(read_pairs(Reader(), *pairs_files(str(path))))
    with pytest.raises(DataError, match=r"no such file or folder; correct data\.pairs"):
        pairs_files(str(tmp_path / "b.json"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no pairs; name \*\.json"):
        pairs_files(str(tmp_path / "empty"))
