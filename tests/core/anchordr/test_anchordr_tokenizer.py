"""The ids of AnchorDR's published tokenizer, and what a text may not do to them."""

import os
from pathlib import Path

import pytest
from anchordr_world import train_pieces

from expandr_core.anchordr.tokenizer import AnchorDRTokenizer, plain_words
from expandr_core.errors import DataError

DATA = os.environ.get("EXPANDR_TEST_DATA", "")
REAL = Path(DATA, "anchordr", "sp.model")

# Made by the published tokenizer (FairseqT5Tokenizer) with its own files.
GOLDEN = {
    "Hello, World!": [0, 5790, 7, 157, 132, 2],
    "what is the capital of France?": [0, 75, 20, 5, 821, 11, 1412, 96, 2],
    "Don't panic -- it's (only) a test.": [
        *(0, 125, 14, 28, 5226, 460, 19, 14, 12, 39, 112, 59, 10, 882, 6, 2)
    ],
    "naïve café ½ ①": [0, 25856, 11878, 20499, 199, 2],
    "e-mail: a@b.com (50%)": [*(0, 326, 22, 4165, 57, 10, 2913, 508, 87, 598, 39, 790, 7036, 2)],
    "WE'LL GO": [0, 32, 14, 168, 127, 2],
    "C++ vs. C#": [0, 457, 17111, 2734, 6, 457, 877, 2],
    "": [0, 2],
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> AnchorDRTokenizer:
    return AnchorDRTokenizer(train_pieces(tmp_path_factory.mktemp("pieces")))


@pytest.fixture(scope="module")
def real() -> AnchorDRTokenizer:
    if not (DATA and REAL.is_file()):
        pytest.skip("needs anchordr/sp.model in the folder named by EXPANDR_TEST_DATA")
    return AnchorDRTokenizer(REAL)


def test_the_ids_are_those_of_the_published_tokenizer(real):
    assert real(list(GOLDEN), 512) == list(GOLDEN.values())
    assert len(real) == 32768


@pytest.mark.parametrize("text", ["<s> a </s>", "<pad>", "<unk>", "[MASK]", "[CLS]", "<sen000>"])
def test_names_of_special_tokens_are_text_in_the_published_model(real, text):
    [[_, *ids, _]] = real([text], 512)
    assert min(ids) > 4


def test_names_of_special_tokens_are_text(small):
    for text in ("<s>", "</s>", "<pad>", "<s> a </s> b"):
        [[first, *ids, last]] = small([text], 512)
        assert (first, last) == (0, 2)
        assert ids and not {0, 1, 2} & set(ids)


@pytest.mark.parametrize("text", ["", " ", "\n\t \u00a0\u3000"])
def test_a_blank_text_is_start_and_end(small, text):
    assert small([text], 512) == [[0, 2]]


def test_a_long_text_loses_its_end_but_not_the_end_token(small):
    [whole] = small(["paris is the capital of france"], 512)
    [cut] = small(["paris is the capital of france"], 6)
    assert len(whole) > 6
    assert cut == [*whole[:5], 2]


def test_texts_are_encoded_as_if_alone(small):
    texts = ["a wing", "", "the tail steers the plane"]
    assert small(texts, 512) == [small([text], 512)[0] for text in texts]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Paris, France", "paris , france"),
        ("``So,'' he said.", '" so ," he said .'),
        ("\u2018a\u2019 \u2014 \u201cb\u201d \u2013 c\u00b4s", "' a ' - \" b \" - c's"),
        ("(((nested))) ...!", "((( nested ))) ...!"),
        ("a.b-c state-of-the-art", "a.b-c state-of-the-art"),
        ("x^2 $5 «guillemets»", "x^2 $ 5 « guillemets »"),
        ("it 's we 'll I 'VE DON 'T", "it 's we 'll i 've don 't"),
        ("' summer '", "' summer '"),
        ("'VEx 'vex", "' vex ' vex"),
        ("two\n\nlines\tand   gaps ", "two lines and gaps"),
    ],
)
def test_punctuation_around_words_is_set_apart(text, words):
    assert plain_words(text) == words


def test_a_file_that_is_no_sentencepiece_model_is_refused(tmp_path):
    (tmp_path / "sp.model").write_text("not a model")
    with pytest.raises(DataError, match="not a SentencePiece model"):
        AnchorDRTokenizer(tmp_path / "sp.model")


def test_a_model_with_other_special_ids_is_refused(tmp_path):
    """By default SentencePiece has <unk>, <s>, </s> as 0, 1, 2."""
    import io

    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(["a text of some words"] * 9),
        model_writer=written,
        vocab_size=20,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (tmp_path / "sp.model").write_bytes(written.getvalue())
    with pytest.raises(DataError, match="id 0 is the piece '<unk>'"):
        AnchorDRTokenizer(tmp_path / "sp.model")


def test_the_saved_tokenizer_is_the_same(small, tmp_path):
    small.save(tmp_path)
    again = AnchorDRTokenizer(tmp_path / "sp.model")
    assert again(["a wing lifts"], 512) == small(["a wing lifts"], 512)
