"""Rows of triples in the layouts of other libraries, and rows that cannot be told apart."""

from typing import Any

import pytest

from expandr_core.data.fields import BadRow
from expandr_core.data.triple_rows import triples_of

BOTH = [("q", "p", "n"), ("q", "p", "m")]
LAYOUTS: dict[str, dict[str, Any]] = {
    "lists": {"query": "q", "positive": ["p"], "negative": ["n", "m"]},
    "spaces": {"query": " q ", "positive": " p\n", "negative": ["n ", "m", " ", None]},
    "FlagEmbedding": {"query": "q", "pos": ["p"], "neg": ["n", "m"], "pos_scores": [1.5],
                      "neg_scores": [0.5, 0.1], "prompt": "Represent", "type": "normal"},
    "sentence-transformers": {"anchor": "q", "positive": "p", "negative_1": "n",
                              "negative_2": "m", "scores": [0.9, 0.2, 0.1]},
    "Tevatron": {"query_id": "7", "query": "q",
                 "positive_passages": [{"docid": "1", "title": "", "text": "p"}],
                 "negative_passages": [{"docid": "2", "title": None, "text": "n"},
                                       {"docid": "3", "text": "m"}]},
    "instructions": {"query": ["Find it", "q"], "positive": ["", "p"],
                     "negative": [["", "n"], ["Find it", "m"]]},
    "labels": {"query": "q", "positive": ["p", "n", "m"], "labels": [1, 0, 0]},
}  # fmt: skip


@pytest.mark.parametrize("row", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_row_is_read_in_the_layout_of_each_library(row):
    assert triples_of(row)[0] == BOTH


def test_every_positive_goes_with_every_negative():
    assert triples_of({"query": "q", "pos": ["a", "b"], "neg": ["x", "y"]})[0] == [
        *[("q", "a", "x"), ("q", "a", "y"), ("q", "b", "x"), ("q", "b", "y")]
    ]


def test_a_title_stands_before_its_text():
    passage = {"docid": "1", "title": "T", "text": "p"}
    assert triples_of({"query": "q", "positive_passages": [passage]})[0] == [("q", "T p", "")]


@pytest.mark.parametrize(
    "beside",
    [{}, {"negative": None}, {"negative": ""}, {"neg": []}, {"negative_passages": []},
     {"label": 1}, {"label": "1"}, {"label": None}, {"labels": []}, {"position": 3}],
)  # fmt: skip
def test_a_row_may_have_no_negative(beside):
    assert triples_of({"query": "q", "positive": "p", **beside})[0] == [("q", "p", "")]


def test_an_instruction_is_left_out_and_said_to_be():
    assert triples_of({"query": ["Find it", "q"], "positive": "p"}) == ([("q", "p", "")], True)
    assert triples_of({"query": "q", "positive": "p"}) == ([("q", "p", "")], False)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "q", "positive": "p"}, 'no query; rename "question" to "query"'),
        ({"query": "q", "answer": "p"}, 'no positive; rename "answer" to "positive"'),
        ({"query": "q", "pos": []}, "pos is empty"),
        ({"query": "q", "pos": [], "neg": ["n"]}, "pos is empty"),
        ({"query": "q", "positive": "p", "pos": ["o"]}, "both positive and pos"),
        ({"query": "q", "positive": "p", "negative": "n", "neg": ["m"]}, "both negative and neg"),
        ({"query": "q", "positive": "p", "neg_1": "n"}, "neg_1 is not understood; rename it"),
        ({"query": "q", "positive": "p", "hard_neg": ["n"]}, "hard_neg is not understood"),
        ({"query": "q", "positive": "p", "positive_2": "o"}, "positive_2 is not understood"),
        ({"query": "q", "positive": "n", "label": 0}, "no text has the label 1; .*'n-tuple'"),
        ({"query": "q", "positive": "n", "label": "0"}, "no text has the label 1; .*'n-tuple'"),
        ({"query": "q", "positive": "n", "label": "contradiction"}, "labels do not fit"),
        ({"query": "q", "positive": "n", "score": 0.3}, "a score, and no negative; .*'n-tuple'"),
        ({"query": "q", "positive": ["p", "n"], "scores": [0.9, 0.3]}, "a score, and no negative"),
        ({"query": "q", "positive": ["p", "n"], "labels": [1]}, "labels do not fit"),
        ({"query": ["a", "b", "c"], "positive": "p"}, "query is not a string"),
        ({"query": ["Find it", "q"], "positive": ["a", "b"]}, "positive may be two texts"),
        ({"query": "q", "positive": {"title": "T"}}, "no text"),
    ],
)
def test_a_row_that_cannot_be_told_is_refused_by_name(row, reason):
    with pytest.raises(BadRow, match=reason):
        triples_of(row)


@pytest.mark.parametrize(
    "name",
    ["random_negative", "bm25_negatives", "mined-neg", "negativePassages", "hn", "distractors",
     "rejected", "irrelevant", "non_relevant"],
)  # fmt: skip
def test_negatives_by_another_name_are_never_left_out_silently(name):
    with pytest.raises(BadRow, match=f"{name} is not understood"):
        triples_of({"query": "q", "positive": "p", name: ["n"]})
    assert len(triples_of({"query": "q", "positive": "p", f"{name}_scores": [0.1]})[0]) == 1
