"""Whatever a retriever was before, its copy in the store says how it is used, or it is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from anchordr_world import SENTENCES, make_anchordr, published_weights, save_published, train_pieces
from flat_options import flat
from retriever_world import save_bert
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.modules import Pooling
from tiny_models import save_llm
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForMaskedLM

from expandr_core.anchordr.model import AnchorDR
from expandr_core.encoders.convert_weights import convert
from expandr_core.encoders.encode import Encoder
from expandr_core.encoders.sentence_transformer import fill_config
from expandr_core.errors import DataError
from expandr_core.options.conventions import CONVENTIONS, ConventionName
from expandr_core.options.retriever import ConventionOptions, EncodingOptions
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.model_source import model_source
from expandr_core.runtime.runner import make_spec, run_stage
from expandr_core.stages.import_model import ImportOptions
from expandr_core.store.store import Store

TEXTS = ["lay1 lay2 tech3", "tech0", "lay0 lay1 lay2 lay3 lay4"]


def imported(folder: Path, **options: Any) -> Path:
    """Import a retriever; return its folder in a store beside it."""
    source, sources = model_source(str(folder))
    resolved = flat(ImportOptions, kind="retriever", folder=str(source), **options)
    store = Store(str(folder.with_name("store")))
    spec = make_spec("import_model", resolved, sources=sources)
    return store.local(run_stage(spec, store, no_progress))


def refused(folder: Path, *parts: str, **options: Any) -> None:
    with pytest.raises(DataError) as caught:
        imported(folder, **options)
    for part in (str(folder), *parts):
        assert part in str(caught.value)


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# AnchorDR


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_pieces(tmp_path_factory.mktemp("pieces"))


@pytest.fixture
def model(pieces: Path) -> AnchorDR:
    return make_anchordr(pieces)


@pytest.fixture
def published(model: AnchorDR, tmp_path: Path) -> Path:
    return save_published(tmp_path / "anchordr", model)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """Compare vectors up to rounding: products depend on how weights are aligned in memory."""
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def vectors_of(model: AnchorDR) -> np.ndarray:
    return SentenceTransformer(modules=[model], device="cpu").encode(SENTENCES)


def test_anchordr_is_imported_as_published_and_compares_by_inner_product(model, published):
    folder = imported(published)
    encoder = Encoder(folder, "cpu", EncodingOptions())
    assert not encoder.normalize
    assert_close(encoder.encode_passages(SENTENCES), vectors_of(model))
    assert_close(encoder.encode_queries(SENTENCES), vectors_of(model))
    assert {path.name for path in folder.iterdir()} >= {"sp.model", "modules.json"}


def test_an_imported_anchordr_is_no_t5_to_transformers_and_can_be_imported_again(published):
    folder = imported(published)
    with pytest.raises(ValueError, match="anchordr"):
        AutoModel.from_pretrained(folder)
    again = imported(shutil.copytree(folder, published.with_name("again")))
    names = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    for name in names - {Path("manifest.json")}:
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name


def test_sentence_transformers_alone_loads_it_if_it_may_import_our_package(model, published):
    """Since version 6 it refuses to import any class that is not its own, also an installed one."""
    folder = str(imported(published))
    with pytest.raises(
        ValueError, match=r"(?s)expandr_core\.anchordr\.AnchorDR.*trust_remote_code"
    ):
        SentenceTransformer(folder, device="cpu")
    loaded = SentenceTransformer(folder, device="cpu", trust_remote_code=True)
    assert_close(loaded.encode(SENTENCES), vectors_of(model))


def as_saved_by_the_papers_code(published: Path, whole: bool = False) -> Path:
    """Write what sentence-transformers 2.2.2 makes of AnchorDR: a T5 encoder with mean pooling."""
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {
            "idx": 1,
            "name": "1",
            "path": "1_Pooling",
            "type": "sentence_transformers.models.Pooling",
        },
    ]
    (published / "modules.json").write_text(json.dumps(modules))
    (published / "sentence_bert_config.json").write_text('{"max_seq_length": 512}')
    versions = {"sentence_transformers": "2.2.2", "transformers": "4.21.0.dev0"}
    config = {"__version__": versions | {"pytorch": "1.13.1"}}
    (published / "config_sentence_transformers.json").write_text(json.dumps(config))
    (published / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}
    (published / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    edit_json(published / "config.json", architectures=["T5EncoderModel"])
    if not whole:
        weights = load_file(published / "model.safetensors")
        kept = {name: each for name, each in weights.items() if not name.startswith("decoder.")}
        save_file(kept, published / "model.safetensors", {"format": "pt"})
    return published


def test_a_retriever_whose_decoder_the_papers_code_lost_is_refused(published):
    folder = as_saved_by_the_papers_code(published)
    refused(folder, "without its decoder", "the training is lost", "yiqingx/AnchorDR")


def test_a_whole_retriever_of_the_papers_code_is_read_as_anchordr(model, published):
    folder = imported(as_saved_by_the_papers_code(published, whole=True))
    found = Encoder(folder, "cpu", EncodingOptions()).encode_passages(SENTENCES)
    assert_close(found, vectors_of(model))


def test_anchordr_follows_no_convention(published):
    refused(published, "AnchorDR", "convention 'e5'", "leave", convention="e5")


def test_pickled_weights_are_refused_until_they_are_converted(model, published):
    shared = published_weights(model)
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        shared[name] = shared["shared.weight"]  # the same memory, as T5Model saves it
    torch.save(shared, published / "pytorch_model.bin")
    (published / "model.safetensors").unlink()
    refused(
        published, "pickle only", f"python -m expandr_core.encoders.convert_weights {published}"
    )
    assert convert(published) == [published / "model.safetensors"]
    assert (published / "pytorch_model.bin").is_file()
    found = Encoder(imported(published), "cpu", EncodingOptions()).encode_passages(SENTENCES)
    assert_close(found, vectors_of(model))


@pytest.mark.parametrize(
    "types",
    [
        ["expandr_core.anchordr.AnchorDR", "somewhere.Else"],
        ["expandr_core.anchordr.AnchorDR", "sentence_transformers.models.Normalize"],
        ["expandr_core.anchordr.model.Other"],
        ["expandr_core.stages.import_model.run"],
    ],
)
def test_a_folder_may_name_anchordr_and_nothing_else_of_our_package(published, types):
    folder = Path(shutil.copytree(imported(published), published.with_name("named")))
    modules = [
        {"idx": number, "name": str(number), "path": "", "type": name}
        for number, name in enumerate(types)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    refused(folder, "module type", "not run")


# Encoders of transformers


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers without modules.json, as Contriever is published."""
    save_bert(tmp_path_factory.mktemp("retriever") / "model")
    return next(tmp_path_factory.getbasetemp().glob("retriever*/model-bert"))


@pytest.fixture
def bert(bert_folder: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(bert_folder, tmp_path / "bert"))
    edit_json(folder / "config.json", architectures=["Contriever"])
    return folder


DENSE = "encoder.layer.1.output.dense"


def hidden_states(folder: Path, texts: list[str]) -> list[torch.Tensor]:
    """Return (tokens, dimensions) for each text alone."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    with torch.no_grad():
        return [
            model.eval()(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
            for text in texts
        ]


def test_every_convention_is_described():
    assert {"model", *CONVENTIONS} == set(get_args(ConventionName))


def test_without_a_convention_the_error_lists_all_of_them(bert):
    meanings = [f"{name} = {convention}" for name, convention in CONVENTIONS.items()]
    refused(bert, "retriever.convention", *meanings)


def test_contriever_is_the_mean_of_the_tokens_compared_by_inner_product(bert):
    encoder = Encoder(imported(bert, convention="contriever"), "cpu", EncodingOptions())
    means = [each.mean(0).numpy() for each in hidden_states(bert, TEXTS)]
    np.testing.assert_allclose(encoder.encode_passages(TEXTS), means, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_queries(TEXTS), means, atol=1e-5)
    assert not encoder.normalize
    assert encoder.model.max_seq_length == 32  # positions that this BERT has


def test_bge_is_the_first_token_with_its_prompt_before_queries(bert):
    encoder = Encoder(imported(bert, convention="bge"), "cpu", EncodingOptions())
    prompt = "Represent this sentence for searching relevant passages: "
    first = torch.stack([each[0] for each in hidden_states(bert, TEXTS)])
    unit = torch.nn.functional.normalize(first).numpy()
    np.testing.assert_allclose(encoder.encode_passages(TEXTS), unit, atol=1e-5)
    np.testing.assert_allclose(
        encoder.encode_queries(TEXTS),
        encoder.encode_passages([prompt + text for text in TEXTS]),
        atol=1e-5,
    )
    assert np.abs(encoder.encode_queries(TEXTS) - unit).max() > 1e-4


def test_e5_has_prompts_before_both(bert):
    plain = Encoder(imported(bert, convention="gte"), "cpu", EncodingOptions())
    encoder = Encoder(imported(bert, convention="e5"), "cpu", EncodingOptions())
    for encode, prompt in (
        (encoder.encode_queries, "query: "),
        (encoder.encode_passages, "passage: "),
    ):
        expected = plain.encode_passages([prompt + text for text in TEXTS])
        np.testing.assert_allclose(encode(TEXTS), expected, atol=1e-5)


def test_the_convention_is_part_of_the_key(bert):
    assert imported(bert, convention="gte") != imported(bert, convention="e5")


def test_pickled_weights_of_a_contriever_are_refused_with_the_remedy(bert):
    torch.save(load_file(bert / "model.safetensors"), bert / "pytorch_model.bin")
    (bert / "model.safetensors").unlink()
    refused(bert, "pickle only (pytorch_model.bin)", "convert_weights", convention="contriever")
    convert(bert)
    imported(bert, convention="contriever")


def test_a_head_that_is_left_over_and_a_pooler_that_is_missing_do_not_matter(bert):
    config = BertConfig.from_pretrained(bert)
    torch.manual_seed(1)
    BertForMaskedLM(config).save_pretrained(bert)
    weights = load_file(bert / "model.safetensors")
    assert any("predictions" in name for name in weights)
    assert not any("pooler" in name for name in weights)
    weights["bert.embeddings.position_ids"] = torch.arange(32)[None]  # as older versions wrote
    save_file(weights, bert / "model.safetensors", {"format": "pt"})
    imported(bert, convention="contriever")
    weights[f"bert.{DENSE}.scale"] = torch.ones(1)
    save_file(weights, bert / "model.safetensors", {"format": "pt"})
    refused(bert, "1 weights are unexpected", DENSE, convention="contriever")


def edit_weights(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        edit(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return damage


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (edit_weights(lambda w: w.pop(f"{DENSE}.bias")), ["1 weights are missing", DENSE]),
        (
            edit_weights(lambda w: w.update({f"{DENSE}.scale": torch.ones(1)})),
            ["1 weights are unexpected", DENSE],
        ),
        (lambda folder: edit_json(folder / "config.json", model_type="t5"), ["not AnchorDR"]),
        (lambda folder: edit_json(folder / "config.json", model_type="no"), ["does not load"]),
    ],
)
def test_an_encoder_whose_weights_are_not_its_own_is_refused(bert, damage, parts):
    damage(bert)
    refused(bert, *parts, convention="contriever" if parts != ["not AnchorDR"] else "model")


def test_an_encoder_with_a_decoder_has_no_convention(tmp_path):
    from transformers import BartConfig, BartModel

    config = BartConfig(
        vocab_size=20, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=8
    )
    BartModel(config).save_pretrained(tmp_path / "bart")
    refused(tmp_path / "bart", "an encoder and a decoder", convention="contriever")


# Decoder LLMs


@pytest.fixture
def llm(tmp_path: Path) -> Path:
    return save_llm(tmp_path / "llm")


def last_states(folder: Path, texts: list[str], end: str) -> torch.Tensor:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    states = []
    for text in texts:
        ids = [*tokenizer(text)["input_ids"], tokenizer.convert_tokens_to_ids(end)]
        with torch.no_grad():
            states.append(model.eval()(torch.tensor([ids])).last_hidden_state[0, -1])
    return torch.nn.functional.normalize(torch.stack(states))


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_vector_of_an_llm_is_that_of_the_added_end_token(llm, side):
    edit_json(llm / "tokenizer_config.json", padding_side=side)
    encoder = Encoder(imported(llm, convention="last-token"), "cpu", EncodingOptions())
    texts = ["hello", "please write a passage to answer the question", "a test of text"]
    assert encoder.model.tokenizer.padding_side == side
    expected = last_states(llm, texts, "<|eos|>").numpy()
    np.testing.assert_allclose(encoder.encode_passages(texts), expected, atol=1e-4)
    asked = CONVENTIONS["last-token"].query_prompt
    prompted = last_states(llm, [asked + text for text in texts], "<|eos|>").numpy()
    np.testing.assert_allclose(encoder.encode_queries(texts), prompted, atol=1e-4)


def test_a_long_text_keeps_the_end_token(llm):
    folder = imported(llm, convention="last-token")
    encoder = Encoder(folder, "cpu", EncodingOptions(max_tokens=8))
    ids = encoder.model.preprocess(["hello world this is a test of text, and more of it"])
    assert ids["input_ids"].shape == (1, 8)
    assert ids["input_ids"][0, -1] == encoder.model.tokenizer.eos_token_id


def test_a_tokenizer_that_already_ends_texts_is_not_changed(llm):
    from tokenizers.processors import TemplateProcessing

    tokenizer = AutoTokenizer.from_pretrained(llm)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <|assistant|>", special_tokens=[("<|assistant|>", 4)]
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|assistant|>"]})
    tokenizer.save_pretrained(llm)
    encoder = Encoder(imported(llm, convention="last-token"), "cpu", EncodingOptions())
    assert encoder.model.tokenizer("hello")["input_ids"][-1] == 4


def test_a_tokenizer_without_end_token_is_refused(llm):
    tokenizer = AutoTokenizer.from_pretrained(llm)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(llm)
    refused(llm, "no end token", "eos_token", convention="last-token")


# Models of sentence-transformers


@pytest.fixture(scope="module")
def transformer_folder(bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The BERT with mean pooling and nothing else in its configuration, as old versions wrote it."""
    from sentence_transformers.base.modules import Transformer

    folder = tmp_path_factory.mktemp("transformer") / "model"
    model = SentenceTransformer(
        modules=[Transformer(str(bert_folder)), Pooling(16, "mean"), Normalize()], device="cpu"
    )
    model.save(str(folder), create_model_card=False)
    (folder / "config_sentence_transformers.json").unlink()
    return folder


@pytest.fixture
def transformer(transformer_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(transformer_folder, tmp_path / "transformer"))


def without_normalize(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:-1]))


def configuration(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config_sentence_transformers.json").read_text())


def test_normalised_vectors_are_compared_by_their_cosine(transformer):
    assert configuration(imported(transformer))["similarity_fn_name"] == "cosine"


def test_nothing_is_assumed_of_vectors_that_are_not_normalised(transformer):
    without_normalize(transformer)
    refused(transformer, "similarity_fn_name", "retriever.encoding.similarity")
    assert configuration(imported(transformer, similarity="dot"))["similarity_fn_name"] == "dot"
    by_convention = imported(transformer, convention="contriever")
    assert configuration(by_convention)["similarity_fn_name"] == "dot"


def test_a_convention_adds_the_prompts_that_the_folder_lacks(transformer):
    folder = imported(transformer, convention="e5")
    prompts = configuration(folder)["prompts"]
    assert (prompts["query"], prompts["document"]) == ("query: ", "passage: ")


@pytest.mark.parametrize(
    ("said", "convention", "parts"),
    [
        ({}, "bge", ["pooling is 'mean'", "'cls' in the convention 'bge'"]),
        (
            {"similarity_fn_name": "cosine"},
            "contriever",
            ["similarity_fn_name is 'cosine'", "but 'dot' in"],
        ),
        ({"prompts": {"query": "Q: "}}, "e5", ["prompts.query is 'Q: '", "but 'query: ' in"]),
        ({"prompts": {"web": "W: "}}, "model", ["['web']", "none is named 'query'"]),
        ({"similarity_fn_name": "euclidean"}, "model", ["'euclidean'", "encoding.similarity"]),
        (
            {"prompts": {"query": "Q: "}, "default_prompt_name": "query"},
            "model",
            ["prepends its prompt 'query'"],
        ),
    ],
)
def test_what_the_folder_states_is_never_overruled(transformer, said, convention, parts):
    (transformer / "config_sentence_transformers.json").write_text(json.dumps(said))
    refused(transformer, *parts, convention=convention)


def test_prompts_of_the_folder_stay(transformer):
    said = {"similarity_fn_name": "cosine", "prompts": {"query": "Q: ", "document": "D: "}}
    (transformer / "config_sentence_transformers.json").write_text(json.dumps(said))
    assert configuration(imported(transformer)) == said


# What import tries


def test_a_retriever_that_gives_all_texts_the_same_vector_is_refused(transformer):
    weights = load_file(transformer / "model.safetensors")
    name = "encoder.layer.1.output.LayerNorm.weight"
    collapsed = weights | {name: weights[name] * 1e-4}
    collapsed["encoder.layer.1.output.LayerNorm.bias"] = torch.ones(16)
    save_file(collapsed, transformer / "model.safetensors", {"format": "pt"})
    refused(transformer, "different queries", "same vector", similarity="cosine")
    refused(transformer, "different queries", "same vector", similarity="dot")


def test_weights_that_are_not_numbers_are_refused(transformer):
    weights = load_file(transformer / "model.safetensors")
    weights["encoder.layer.1.output.dense.weight"][:] = torch.nan
    save_file(weights, transformer / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"finite|NaN|not a number"):
        imported(transformer)


def test_a_length_limit_beyond_the_positions_is_detected_at_import(transformer):
    edit_json(transformer / "sentence_bert_config.json", max_seq_length=64)
    refused(transformer, "long text", "max_seq_length")
    edit_json(transformer / "sentence_bert_config.json", max_seq_length=32)
    imported(transformer)


# Prompts, by whatever name


def with_prompts(folder: Path, **prompts: str) -> Path:
    said = {"similarity_fn_name": "cosine", "prompts": prompts}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(said))
    return folder


def test_a_passage_prompt_is_not_hidden_by_an_empty_document_prompt(transformer):
    """sentence-transformers writes an empty "document" beside it whenever it saves a model."""
    plain = Encoder(imported(transformer), "cpu", EncodingOptions())
    expected = plain.encode_passages(["passage: " + text for text in TEXTS])
    with_prompts(transformer, query="query: ", passage="passage: ")
    saved = transformer.with_name("saved")
    SentenceTransformer(str(transformer), device="cpu").save(str(saved), create_model_card=False)
    assert configuration(saved)["prompts"]["document"] == ""
    for folder in (transformer, saved):
        copy = imported(folder)
        found = Encoder(copy, "cpu", EncodingOptions()).encode_passages(TEXTS)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        library = SentenceTransformer(str(copy), device="cpu")
        np.testing.assert_allclose(library.encode_document(TEXTS), expected, atol=1e-6)


STELLA = {"s2p_query": "Instruct: search\nQuery: ", "s2s_query": "Instruct: same\nQuery: "}
JINA = {"retrieval.query": "Represent: ", "retrieval.passage": "Document: ", "text-matching": ""}
NOMIC = {"search_query": "q: ", "search_document": "d: ", "clustering": "clustering: "}


@pytest.mark.parametrize(
    ("prompts", "query", "passage"),
    [
        (STELLA, "s2p_query", "model"),
        (STELLA, "s2p_query", ""),
        (JINA, "retrieval.query", "retrieval.passage"),
        (NOMIC, "search_query", "search_document"),
    ],
)
def test_options_name_the_prompts_of_a_folder_with_unusual_names(
    transformer, prompts, query, passage
):
    with_prompts(transformer, **prompts)
    encoder = Encoder(
        imported(transformer, query_prompt=query, passage_prompt=passage), "cpu", EncodingOptions()
    )
    plain = Encoder(imported(with_prompts(transformer)), "cpu", EncodingOptions())
    for encode, name in ((encoder.encode_queries, query), (encoder.encode_passages, passage)):
        expected = plain.encode_passages([prompts.get(name, "") + text for text in TEXTS])
        np.testing.assert_allclose(encode(TEXTS), expected, atol=1e-6)


@pytest.mark.parametrize("prompts", [STELLA, JINA, NOMIC, {"query": "q: ", "search_document": "d"}])
@pytest.mark.parametrize("convention", ["model", "gte", "e5"])
def test_neither_a_convention_nor_silence_drops_a_folder_s_prompts(
    transformer, prompts, convention
):
    with_prompts(transformer, **prompts)
    refused(
        transformer, "retriever.convention.query_prompt", "passage_prompt", convention=convention
    )


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"query_prompt": "s2p"}, ["no prompt is named 's2p'", "s2p_query", "query_prompt"]),
        ({"query_prompt": "s2p_query", "name": "gte"}, ["prompts.query is 'Instruct"]),
        ({"query_prompt": "", "passage_prompt": "", "name": "e5"}, ["prompts.query is ''"]),
    ],
)
def test_a_prompt_that_the_folder_lacks_or_a_convention_contradicts_is_refused(
    transformer, options, parts
):
    refused(with_prompts(transformer, **STELLA), *parts, **options)


def test_prompts_of_other_tasks_do_no_harm(transformer):
    said = {"query": "q: ", "Clustering": "c: ", "STS": "s: "}
    prompts = configuration(imported(with_prompts(transformer, **said)))["prompts"]
    assert (prompts["query"], prompts["document"]) == ("q: ", "")


# What the folder's configuration changes


def test_truncate_dim_is_what_sentence_transformers_makes_of_it(transformer):
    with_prompts(transformer, query="lay0 ")
    edit_json(transformer / "config_sentence_transformers.json", truncate_dim=5)
    library = SentenceTransformer(str(transformer), device="cpu")
    encoder = Encoder(imported(transformer), "cpu", EncodingOptions())
    for ours, theirs in (
        (encoder.encode_queries, library.encode_query),
        (encoder.encode_passages, library.encode_document),
    ):
        expected = theirs(TEXTS, normalize_embeddings=True)
        assert expected.shape == (3, 5)
        np.testing.assert_allclose(ours(TEXTS), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["Document", "doc", "PASSAGE"])
def test_a_prompt_for_passages_with_another_spelling_is_never_ignored_silently(tmp_path, name):
    (tmp_path / "modules.json").write_text('[{"type": "x.Normalize"}]')
    prompts = {"query": "q: ", name: "p: "}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    with pytest.raises(DataError, match="passage_prompt"):
        fill_config(tmp_path, ConventionOptions(), "cosine")
