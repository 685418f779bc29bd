"""Words by script: of English what `re` finds, of scripts without spaces pairs of characters."""

import re

from hypothesis import given
from hypothesis import strategies as st

from expandr_core.data.terms import count_words, terms
from expandr_core.evaluation.leakage import verbatim_share
from expandr_core.preferences.audit import query_overlap

LATIN = st.text(st.characters(max_codepoint=0x2FF), max_size=30)


@given(LATIN)
def test_words_of_latin_letters_are_runs_of_word_characters(text):
    assert terms(text) == re.findall(r"\w+", text)
    assert terms(text, shortest=2) == re.findall(r"(?u)\b\w\w+\b", text)
    assert count_words(text) == len(text.split())


def test_scripts_without_spaces_are_cut_into_pairs_of_characters_with_their_marks():
    assert terms("患者は iPhoneを") == ["患者", "者は", "iPhone", "を"]
    assert terms("น้ำตาล") == ["น้ำ", "ำต", "ตา", "าล"]
    assert terms("ꦧꦱꦗꦮ") == ["ꦧꦱ", "ꦱꦗ", "ꦗꦮ"]
    assert terms("𠮷野家 々ヶ") == ["𠮷野", "野家", "々ヶ"]


def test_spellings_of_one_word_are_one():
    assert terms("ｶﾞｰﾄﾞ \uff21\uff22") == terms("ガード AB")
    assert terms("cafe\u0301") == terms("café")
    assert terms("\u2f08\u9593") == terms("人間")  # a radical, as documents of print have it
    assert terms("葛\U000e0100城\ufe00市") == terms("葛城市")


def test_marks_belong_to_their_words_and_signs_have_none():
    assert terms("मधुमेह के रोगी") == ["मधुमेह", "के", "रोगी"]
    assert terms("❤️ 1️⃣ x", shortest=2) == []


def test_each_character_of_a_script_without_spaces_counts_as_a_word():
    assert count_words("血糖値。") == 3
    assert count_words("新しいiPhone") == 4


def test_a_verbatim_copy_is_found_in_every_script():
    for text in [
        "糖尿病患者应控制血糖水平",
        "ผู้ป่วยเบาหวานควรควบคุมระดับน้ำตาล",
        "糖尿病の患者は血糖値を見る",
    ]:
        assert verbatim_share(text, [f"{text}。"]) == 1.0
        assert verbatim_share(text, [text[:4]]) == 0.0


def test_the_share_of_the_query_is_told_in_every_script():
    assert query_overlap("血糖値", "血糖値を管理する") == 1.0
    assert query_overlap("血糖値", "血糖") == 0.5
