"""A model that cannot be used is refused before any work, with the reason."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from expandr_core.encoders.check import check_retriever
from expandr_core.errors import DataError
from expandr_core.generation.check_llm import check_llm
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.model_folders import check_folder, model_files
from expandr_core.runtime.model_source import model_source
from expandr_core.runtime.runner import make_spec, run_stage
from expandr_core.stages.import_model import ImportOptions
from expandr_core.store.store import Store

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """256 bytes, <s>, </s>, <pad>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = template
    return tokenizer


def llama(*, tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=256,
        eos_token_id=257,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config)


@pytest.fixture
def llm(tmp_path: Path) -> Path:
    folder = tmp_path / "llm"
    llama().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    (folder / "README.md").write_text("about it")
    (folder / "training_args.bin").write_bytes(b"pickle")
    return folder


@pytest.fixture
def retriever(tmp_path: Path) -> Path:
    folder = tmp_path / "retriever"
    torch.manual_seed(0)
    tokenizer = byte_tokenizer().backend_tokenizer
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)]).save(str(folder))
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def no_template(folder: Path) -> None:
    byte_tokenizer(None).save_pretrained(folder)
    (folder / "chat_template.jinja").unlink()


def two_bos(folder: Path) -> None:
    byte_tokenizer("{{ bos_token }}" + TEMPLATE).save_pretrained(folder)


def failing_template(folder: Path) -> None:
    byte_tokenizer("{{ raise_exception('only for tools') }}").save_pretrained(folder)


def bert(folder: Path) -> None:
    shutil.rmtree(folder)
    config = BertConfig(
        vocab_size=259,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def larger_tokenizer(folder: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["wing", "flap"])
    tokenizer.save_pretrained(folder)


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


def eos_beyond(folder: Path) -> None:
    edit_json(folder / "generation_config.json", eos_token_id=[257, 128009])


def pickle_only(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "training_args.bin").unlink()


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def without_head(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def diverged(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][3, 1] = float("inf")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def diverged_in_bytes(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["scale"] = torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def lost_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (no_template, ["no chat template", "chat_template.jinja"]),
        (two_bos, ["2 beginning-of-sequence tokens", "exactly one"]),
        (failing_template, ["the chat template fails", "only for tools"]),
        (bert, ["BertForMaskedLM is not a causal language model", "config.json"]),
        (larger_tokenizer, ["261 tokens", "259 embeddings", "was trained with"]),
        (no_tokenizer, ["the tokenizer does not load", "tokenizer.json"]),
        (eos_beyond, ["eos_token_id is 128009", "259 tokens"]),
        (pickle_only, ["pickle only (pytorch_model.bin)", "model.safetensors"]),
        (no_weights, ["no weights"]),
        (truncated, ["model.safetensors: damaged", "again"]),
        (without_head, ["1 weights are missing (lm_head.weight)"]),
        (diverged, ["model.layers.0.mlp.up_proj.weight", "not finite"]),
        (diverged_in_bytes, ["scale has numbers", "not finite"]),
        (lost_shard, ["model-00001-of-00002.safetensors is missing", "index.json lists it"]),
        (adapter, ["an adapter", "merge it"]),
        (
            lambda folder: edit_json(folder / "config.json", auto_map={"AutoModel": "m.M"}),
            ["auto_map"],
        ),
        (
            lambda folder: edit_json(folder / "config.json", architectures=None),
            ["none is not a causal"],
        ),
        (lambda folder: (folder / "config.json").unlink(), ["no config.json"]),
        (lambda folder: (folder / "config.json").write_text("{"), ["config.json: not valid JSON"]),
    ],
)
def test_an_llm_that_cannot_be_used_is_refused_with_the_reason(
    llm: Path, damage: Callable[[Path], None], parts: list[str]
) -> None:
    check_folder(llm)
    check_llm(llm)
    damage(llm)
    with pytest.raises(DataError) as caught:
        check_folder(llm)
        check_llm(llm)
    for part in parts:
        assert part in str(caught.value)
    assert str(llm) in str(caught.value)


def test_an_llm_whose_head_is_its_embedding_is_accepted(llm: Path) -> None:
    llama(tied=True).save_pretrained(llm)
    assert "lm_head.weight" not in load_file(llm / "model.safetensors")
    check_llm(llm)


def foreign_module(folder: Path) -> None:
    path = folder / "modules.json"
    modules = json.loads(path.read_text())
    modules[0]["type"] = "custom_st.Transformer"
    path.write_text(json.dumps(modules))


def not_finite(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["embedding.weight"][:] = float("nan")
    save_file(weights, folder / "model.safetensors")


def outside(folder: Path) -> None:
    path = folder / "modules.json"
    modules = json.loads(path.read_text())
    modules[0]["path"] = "../llm"
    path.write_text(json.dumps(modules))


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (foreign_module, ["custom_st.Transformer", "not run"]),
        (not_finite, ["model.safetensors: embedding.weight", "nan", "finite"]),
        (outside, ["outside the folder"]),
        (lambda folder: (folder / "tokenizer.json").unlink(), ["does not work"]),
        (truncated, ["damaged"]),
    ],
)
def test_a_retriever_that_cannot_be_used_is_refused_with_the_reason(
    retriever: Path, damage: Callable[[Path], None], parts: list[str]
) -> None:
    check_folder(retriever)
    check_retriever(retriever)
    damage(retriever)
    with pytest.raises(DataError) as caught:
        check_folder(retriever)
        check_retriever(retriever)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("model", ["./models/llama", "/nowhere/llama", "a/b/c", "-x"])
def test_a_missing_folder_is_not_looked_for_on_the_hub(model: str) -> None:
    with pytest.raises(DataError, match="no such folder"):
        model_source(model)


@pytest.mark.parametrize("kind", ["llm", "retriever"])
def test_a_model_is_copied_into_the_store_with_the_files_that_belong_to_it(
    kind: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    original: Path = request.getfixturevalue(kind)
    folder, sources = model_source(str(original))
    store = Store(str(tmp_path / "store"))
    spec = make_spec("import_model", ImportOptions(kind=kind, folder=str(folder)), sources=sources)
    artifact = run_stage(spec, store, no_progress)
    assert artifact.files == sources
    assert "model.safetensors" in sources
    assert "training_args.bin" not in sources
    elsewhere = Path(shutil.copytree(original, tmp_path / "elsewhere"))
    folder, sources = model_source(str(elsewhere))
    moved = make_spec("import_model", ImportOptions(kind=kind, folder=str(folder)), sources=sources)
    assert moved.key == spec.key


def test_a_model_that_changes_while_it_is_copied_is_refused(
    retriever: Path, tmp_path: Path
) -> None:
    folder, sources = model_source(str(retriever))
    edit_json(folder / "config_sentence_transformers.json", similarity_fn_name="dot")
    options = ImportOptions(kind="retriever", folder=str(folder))
    spec = make_spec("import_model", options, sources=sources)
    with pytest.raises(DataError, match="changed during the run; start"):
        run_stage(spec, Store(str(tmp_path / "store")), no_progress)


def test_only_the_folders_of_modules_belong_to_a_model(retriever: Path) -> None:
    (retriever / "1_Pooling").mkdir()
    (retriever / "1_Pooling" / "config.json").write_text("{}")
    (retriever / "onnx").mkdir()
    (retriever / "onnx" / "config.json").write_text("{}")
    assert "1_Pooling/config.json" not in model_files(retriever)
    path = retriever / "modules.json"
    modules = json.loads(path.read_text())
    modules.append({"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.X"})
    path.write_text(json.dumps(modules))
    files = model_files(retriever)
    assert "1_Pooling/config.json" in files
    assert "onnx/config.json" not in files
