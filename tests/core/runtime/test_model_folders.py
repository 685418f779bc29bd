"""Which files of a folder are a model's: what was checked is what runs, and nothing of it runs code."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from retriever_world import save_bert
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tiny_models import save_llm
from transformers import AutoModel, AutoModelForCausalLM

from expandr_core.encoders.encode import Encoder
from expandr_core.errors import DataError
from expandr_core.options.retriever import EncodingOptions
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.model_folders import check_folder, model_files
from expandr_core.runtime.model_source import model_source
from expandr_core.runtime.runner import make_spec, run_stage
from expandr_core.stages.import_model import ImportOptions
from expandr_core.store.store import Store

IDS = torch.tensor([[5, 6, 7]])
INDEX = "model.safetensors.index.json"


def imported(folder: Path, kind: Any = "llm") -> Path:
    """Import a model; return its folder in a store beside it."""
    source, sources = model_source(str(folder))
    options = ImportOptions(kind=kind, folder=str(source))
    store = Store(str(folder.with_name("store")))
    spec = make_spec("import_model", options, sources=sources)
    return store.local(run_stage(spec, store, no_progress))


def logits(folder: Path) -> torch.Tensor:
    with torch.inference_mode():
        return AutoModelForCausalLM.from_pretrained(folder)(IDS).logits


def edit_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | changes))


def adapted(model: Any, targets: list[str]) -> Any:
    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(target_modules=targets, init_lora_weights=False))


@pytest.fixture
def llm(tmp_path: Path, llm_folder: Path) -> Path:
    return Path(shutil.copytree(llm_folder, tmp_path / "llm"))


@pytest.fixture
def merged(tmp_path: Path, llm: Path) -> Path:
    """A merged model in the folder where training left its adapter."""
    folder = Path(shutil.copytree(llm, tmp_path / "merged"))
    model = adapted(AutoModelForCausalLM.from_pretrained(llm), ["q_proj", "v_proj"])
    model.save_pretrained(folder)
    model.merge_and_unload().save_pretrained(folder)
    return folder


def test_a_merged_llm_beside_its_adapter_gets_the_adapter_once(llm, merged, caplog):
    clean = Path(shutil.copytree(merged, merged.with_name("clean")))
    for path in clean.glob("adapter*"):
        path.unlink()
    with caplog.at_level(logging.WARNING, "expandr_core"):
        copy = imported(merged)
    assert not list(copy.glob("adapter*"))
    assert torch.equal(logits(copy), logits(clean))
    assert not torch.allclose(logits(copy), logits(llm), atol=1e-3)
    assert "adapter" in caplog.text
    assert "is ignored" in caplog.text


def test_a_merged_retriever_beside_its_adapter_gets_the_adapter_once(tmp_path):
    bert = save_bert(tmp_path / "bert")
    edit_json(bert / "config_sentence_transformers.json", similarity_fn_name="cosine")
    folder = Path(shutil.copytree(bert, tmp_path / "retriever"))
    model = adapted(AutoModel.from_pretrained(bert), ["query", "value"])
    model.save_pretrained(folder)
    model.merge_and_unload().save_pretrained(folder)
    clean = Path(shutil.copytree(folder, tmp_path / "clean"))
    for path in clean.glob("adapter*"):
        path.unlink()
    texts = ["lay1 lay2 tech3", "tech0"]
    expected = SentenceTransformer(str(clean), device="cpu").encode(
        texts, normalize_embeddings=True
    )
    encoder = Encoder(imported(folder, "retriever"), "cpu", EncodingOptions())
    assert np.allclose(encoder.encode_passages(texts), expected, atol=1e-5)


def test_an_adapter_of_the_very_weights_beside_it_is_refused_with_a_remedy(llm):
    adapted(AutoModelForCausalLM.from_pretrained(llm), ["q_proj"]).save_pretrained(llm)
    with pytest.raises(DataError, match=r"may or may not have .* remove adapter_config\.json"):
        check_folder(llm)
    (llm / "adapter_config.json").unlink()
    check_folder(llm)
    assert "adapter_model.safetensors" not in model_files(llm)


def test_an_adapter_with_the_configuration_of_its_base_is_no_model(merged):
    (merged / "model.safetensors").unlink()
    with pytest.raises(
        DataError, match=r"an adapter, not a model; .* llm\.adapter; otherwise merge it"
    ):
        check_folder(merged)


def save_shards(folder: Path, llm: Path) -> None:
    AutoModelForCausalLM.from_pretrained(llm).save_pretrained(folder, max_shard_size="40KB")
    assert (folder / INDEX).is_file()


def test_shards_alone_are_taken(llm, tmp_path):
    sharded = tmp_path / "sharded"
    save_shards(sharded, llm)
    for path in llm.glob("*token*"):
        shutil.copy(path, sharded)
    shutil.copy(llm / "chat_template.jinja", sharded)
    shutil.copy(llm / "model.safetensors", sharded / "consolidated.safetensors")
    assert torch.equal(logits(imported(sharded)), logits(llm))
    assert "consolidated.safetensors" not in model_files(sharded)
    next(sharded.glob("model-00002*")).unlink()
    with pytest.raises(DataError, match=r"model-00002-of-.* is missing; .*index.json lists it"):
        check_folder(sharded)


def test_of_a_model_saved_whole_and_in_shards_all_engines_get_the_whole_one(llm, tmp_path, caplog):
    newer = save_llm(tmp_path / "newer", seed=1)
    whole = load_file(llm / "model.safetensors")
    save_shards(llm, newer)  # removes what it would replace
    save_file(whole, llm / "model.safetensors", {"format": "pt"})
    with caplog.at_level(logging.WARNING, "expandr_core"):
        copy = imported(llm)
    assert [path.name for path in copy.glob("*safetensors*")] == ["model.safetensors"]
    assert torch.equal(logits(copy), logits(llm))
    assert f"model.safetensors is used, and the shards in {INDEX} are not" in caplog.text


def test_an_index_whose_shards_are_gone_does_no_harm_beside_the_whole_model(llm):
    edit_json(llm / INDEX, weight_map={"lm_head.weight": "model-00001-of-00002.safetensors"})
    assert torch.equal(logits(imported(llm)), logits(llm))


def test_weights_under_a_name_that_only_transformers_would_find_are_refused(llm):
    shutil.copy(llm / "model.safetensors", llm / "other.safetensors")
    edit_json(llm / "config.json", transformers_weights="other.safetensors")
    with pytest.raises(DataError, match=r"other\.safetensors.*rename the weights"):
        check_folder(llm)


def test_every_file_belongs_to_a_model_but_pickles_code_and_other_weights(llm):
    kept = [
        "bpe.codes",
        "LICENSE",
        "NOTICE.md",
        "README.md",
        "vocab",
        "tokenizer.model",
        "a.tiktoken",
    ]
    left = [
        "training_args.bin",
        "optimizer.pt",
        "rng.pth",
        "x.pkl",
        "modeling_x.py",
        "x.so",
        "a.sh",
        "a.gguf",
    ]
    left += [
        "a.sh",
        "a.gguf",
        "tf_model.h5",
        "flax_model.msgpack",
        ".gitattributes",
        "manifest.json",
    ]
    for name in kept + left:
        (llm / name).write_text("{}")
    assert set(kept) <= set(model_files(llm))
    assert not set(left) & set(model_files(llm))
    copy = imported(llm)
    assert {path.name for path in copy.iterdir()} == {*model_files(llm), "manifest.json"}


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "processor_config.json", "other.json"]
)
@pytest.mark.parametrize("nested", [False, True])
def test_code_is_refused_wherever_a_file_names_it(llm, name, nested):
    (llm / "vocab.json").write_text('{"auto_map": 5}')  # a token
    check_folder(llm)
    code = {"auto_map": {"AutoTokenizer": ["tokens.Tokens", None]}}
    edit_json(llm / name, **({"text_config": [code]} if nested else code))
    with pytest.raises(DataError, match=rf"{name}: auto_map names its own code"):
        check_folder(llm)


def dense_with_an_activation_of_its_own(folder: Path) -> None:
    dense = folder / "2_Dense"
    dense.mkdir()
    kind = "sentence_transformers.models.Dense"
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 2, "name": "2", "path": "2_Dense", "type": kind})
    (folder / "modules.json").write_text(json.dumps(modules))
    edit_json(dense / "config.json", in_features=4, activation_function="mine.Swish")


def code_of_a_module(folder: Path) -> None:
    edit_json(folder / "1_Pooling" / "config.json", auto_map={"AutoModel": "m.M"})


def another_kind_of_model(folder: Path) -> None:
    edit_json(folder / "config_sentence_transformers.json", model_type="SparseEncoder")


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (dense_with_an_activation_of_its_own, ["mine.Swish", "would substitute another"]),
        (code_of_a_module, ["1_Pooling/config.json", "auto_map"]),
        (another_kind_of_model, ["SparseEncoder", "sentence-transformers would replace"]),
    ],
)
def test_what_sentence_transformers_would_replace_is_refused(
    tmp_path, damage: Callable[[Path], None], parts: list[str]
):
    folder = save_bert(tmp_path / "bert")
    check_folder(folder)
    damage(folder)
    with pytest.raises(DataError) as caught:
        check_folder(folder)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"), [("config.json", "[]"), ("modules.json", '{"0": 1}'), (INDEX, "3")]
)
def test_json_of_another_shape_is_named(llm, name, text):
    if name == INDEX:
        (llm / "model.safetensors").unlink()
    (llm / name).write_text(text)
    with pytest.raises(DataError, match=f"{name}: not a"):
        check_folder(llm)
