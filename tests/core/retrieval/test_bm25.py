"""BM25: a score by hand, terms, hits, ties."""

import inspect
import logging
import math
import random
from typing import get_args

import bm25s
import numpy as np
import pyarrow as pa
import pytest
import Stemmer

from expandr_core.errors import DataError
from expandr_core.options.evaluation import Language
from expandr_core.retrieval.bm25 import BM25, build_bm25, open_bm25


def index_of(
    passages: dict[str, str], k1: float = 0.9, b: float = 0.4, language: Language = "english"
) -> BM25:
    return build_bm25(pa.array(list(passages)), passages.values(), k1, b, language)


def hits(index: BM25, query: str, k: int = 10, query_id: str = "q") -> list[str]:
    return index.search(pa.array([query_id]), [query], k)["passage_id"].to_pylist()


def test_a_score_by_hand():
    index = index_of({"a": "red red bird", "b": "blue bird song river", "c": "stone"})
    run = index.search(pa.array(["q"]), ["red"], 10).to_pydict()
    rarity = math.log(1 + (3 - 1 + 0.5) / (1 + 0.5))
    length = 3 / ((3 + 4 + 1) / 3)
    expected = rarity * 2 / (2 + 0.9 * (1 - 0.4 + 0.4 * length))
    assert (run["passage_id"], run["rank"]) == (["a"], [1])
    assert run["score"] == pytest.approx([expected], rel=1e-5)


def test_the_library_says_nothing_of_its_steps(caplog):
    logging.getLogger("bm25s").setLevel(logging.DEBUG)  # as at import
    index_of({"a": "red bird"})
    assert not caplog.records


def test_terms_are_stems_in_lower_case_without_stop_words():
    index = index_of({"a": "The Birds were SINGING", "b": "the and of"})
    assert hits(index, "bird") == ["a"]
    assert hits(index, "sings") == ["a"]
    assert hits(index, "the") == []
    assert hits(index, "were of unheard words") == ["a"]  # "were" is no stop word of Lucene's


def test_only_passages_that_share_a_term_are_hits_whatever_the_depth():
    index = index_of({"a": "red bird", "b": "blue bird", "c": "stone", "empty": ""})
    assert hits(index, "blue bird", k=1000) == ["b", "a"]
    assert hits(index, "", k=1000) == []
    assert hits(index, "?!", k=1000) == []


def test_equal_scores_are_ordered_by_descending_id_also_at_the_cut():
    index = index_of(dict.fromkeys(["b", "d", "a", "c"], "red bird"))
    assert hits(index, "red", k=2) == ["d", "c"]


def test_a_passage_with_the_query_s_id_is_left_out_and_replaced_by_the_next():
    index = index_of({"a": "red", "b": "red red bird", "c": "red bird"})
    assert hits(index, "red", k=2) == ["b", "a"]
    assert hits(index, "red", k=2, query_id="b") == ["a", "c"]


def test_runs_of_several_queries_follow_their_order():
    index = index_of({"a": "red", "b": "blue"})
    run = index.search(pa.array(["x", "y", "z"]), ["blue", "nothing", "red"], 5).to_pydict()
    assert (run["query_id"], run["passage_id"], run["rank"]) == (["x", "z"], ["b", "a"], [1, 1])


@pytest.mark.parametrize("name", ["k1", "b"])
def test_terms_are_weighted_as_bm25s_does_by_default(name):
    ours, theirs = (inspect.signature(each).parameters[name] for each in (build_bm25, bm25s.BM25))
    assert ours.default == theirs.default


def test_a_corpus_without_words_is_refused():
    with pytest.raises(DataError, match="no passage of the corpus has a word"):
        index_of({"a": "", "b": "the"})


@pytest.mark.parametrize(
    ("passages", "query"),
    [
        (["糖尿病患者应控制血糖水平。", "高血压患者应减少盐的摄入。"], "血糖 控制"),
        (["糖尿病の患者は血糖値を管理する。", "高血圧の患者は塩分を減らす。"], "血糖値"),
        (["ガードレールを直す", "ハンドルを直す"], "ｶﾞｰﾄﾞﾚｰﾙ"),
        (["당뇨병환자는 혈당을 조절한다", "고혈압환자는 소금을 줄인다"], "당뇨병 환자의 혈당"),
        (["ผู้ป่วยเบาหวานควบคุมน้ำตาล", "ผู้ป่วยความดันลดเกลือ"], "น้ำตาล"),
        (["ຄົນເຈັບເບົາຫວານ", "ຄວາມດັນເລືອດ"], "ເບົາຫວານ"),
        (["អ្នកជំងឺទឹកនោមផ្អែម", "សម្ពាធឈាម"], "ទឹកនោម"),
        (["ဆီးချိုရောဂါသည်", "သွေးတိုး"], "ဆီးချို"),
        (["मधुमेह के रोगी", "रक्तचाप"], "मधुमेह"),
        (["新しいiPhoneのバッテリー", "古い電話"], "iphone"),
    ],
)
def test_passages_are_found_in_every_script(passages, query):
    index = index_of(dict(zip("ab", passages, strict=True)))
    assert hits(index, query)[:1] == ["a"]


def test_stemmer_and_stop_words_are_those_of_the_language():
    passages = {"a": "die Häuser der Stadt", "b": "the city"}
    assert hits(index_of(passages, language="german"), "Hauses") == ["a"]
    assert hits(index_of(passages, language="german"), "der the") == ["b"]
    assert hits(index_of(passages, language="none"), "der the") == ["b", "a"]
    assert hits(index_of(passages, language="none"), "Hauses") == []
    assert {*get_args(Language)} <= {"none", *Stemmer.algorithms()}


@pytest.mark.parametrize("language", ["english", "none"])
def test_an_index_that_was_saved_finds_the_same_with_the_same_scores(tmp_path, language):
    chance = random.Random(0)
    words = [
        "Häuser",
        "house",
        "houses",
        "running",
        "RUNS",
        "the",
        "of",
        "bird's",
        "血糖値を",
        "x1",
    ]
    passages = {f"p{n:03}": " ".join(chance.choices(words, k=12)) for n in range(200)}
    index = index_of(passages, language=language)
    index.save(tmp_path)
    opened = open_bm25(tmp_path)
    queries = [*words, "houses running unheard", "", *(text[:30] for text in passages.values())]
    ids = pa.array([f"q{n}" for n in range(len(queries))])
    expected = index_of(passages, language=language).search(ids, queries, 50)
    assert opened.search(ids, queries, 50).equals(expected)
    assert index.search(ids, queries, 50).equals(expected)
    assert isinstance(opened.index.scores["data"], np.memmap)


def test_a_saved_index_holds_no_pickle_and_refuses_one(tmp_path):
    index_of({"a": "red bird", "b": "stone"}).save(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        *("data.csc.index.npy", "indices.csc.index.npy", "indptr.csc.index.npy", "language.txt"),
        *("params.index.json", "passage_id.parquet", "term.parquet"),
    ]
    np.save(tmp_path / "data.csc.index.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"(?i)pickle|object"):
        open_bm25(tmp_path)
