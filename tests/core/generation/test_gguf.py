"""A GGUF becomes a model folder that writes the same texts; what is not one is refused."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from tiny_models import BOS, EOS, make_tokenizer
from transformers import AutoModelForCausalLM, Qwen2Config

from expandr_core.errors import DataError
from expandr_core.exports.export import new_folder
from expandr_core.generation.engine import Request
from expandr_core.generation.gguf_models import import_gguf
from expandr_core.generation.transformers_engine import TransformersGenerator
from expandr_core.options.generation import SamplingOptions

HAS_GGUF = importlib.util.find_spec("gguf") is not None
needs_gguf = pytest.mark.skipif(not HAS_GGUF, reason="the package gguf is not installed")
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "tie_word_embeddings": True,
}


@pytest.fixture
def model(tmp_path) -> Path:
    """A Qwen2 of random weights, saved as the library does."""
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path / "model")
    torch.manual_seed(0)
    ends = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": 0}
    config = Qwen2Config(vocab_size=len(tokenizer), **SIZES, **ends)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def write_gguf(model: Path, path: Path, arch: str = "qwen2", left_out: str = "", **more) -> Path:
    """Write the model as llama.cpp's converter would, in float32."""
    import gguf

    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(512)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    spelled = json.loads((model / "tokenizer.json").read_text())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(spelled["vocab"], key=spelled["vocab"].get))
    writer.add_token_types([3] * 5 + [1] * (len(spelled["vocab"]) - 5))
    writer.add_token_merges([" ".join(pair) for pair in spelled["merges"]])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_pad_token_id(0)
    for key, value in more.items():
        writer.add_uint16(key.replace("_", "."), value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, 2)
    for name, weight in AutoModelForCausalLM.from_pretrained(model).state_dict().items():
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if name != "lm_head.weight" and found != left_out:
            writer.add_tensor(found, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def greedy(folder: Path) -> list[str]:
    generator = TransformersGenerator(folder, "cpu")
    requests = [Request("q2d", f"why {n}?", "", (n,), (0.0,)) for n in range(4)]
    texts = generator.generate(requests, SamplingOptions(max_new_tokens=12), 200)
    found = dict(each for part in texts for each in part)
    return [found[n][0].text for n in range(4)]


@needs_gguf
def test_an_imported_model_writes_the_texts_of_the_original(model, tmp_path):
    file = write_gguf(model, tmp_path / "model.gguf")
    template = (model / "chat_template.jinja").read_text()
    with new_folder(tmp_path / "folder") as folder:
        assert import_gguf(file, folder, template) == []
    assert greedy(tmp_path / "folder") == greedy(model)
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert "quantization_config" not in config and config["dtype"] == "float32"


@needs_gguf
def test_a_base_model_gets_a_plain_template_and_files_beside_it_do_not_matter(model, tmp_path):
    file = write_gguf(model, tmp_path / "model.gguf")
    for name in ("config.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_text('{"model_type": "bert"}')
    with new_folder(tmp_path / "folder") as folder:
        [remark] = import_gguf(file, folder)
    assert "no chat template" in remark
    assert all(greedy(tmp_path / "folder"))


@needs_gguf
def test_what_is_no_complete_gguf_of_a_causal_model_is_refused(model, tmp_path):
    def refused(file: Path, match: str, template: str = "") -> None:
        with (
            pytest.raises(DataError, match=match) as caught,
            new_folder(tmp_path / "folder") as folder,
        ):
            import_gguf(file, folder, template)
        assert str(file) in str(caught.value)
        assert not (tmp_path / "folder").exists()

    whole = write_gguf(model, tmp_path / "whole.gguf")
    refused(tmp_path / "none.gguf", "no such file")
    refused(tmp_path, "not a file")
    other = tmp_path / "other.gguf"
    other.write_text("{}")
    refused(other, "not a GGUF")
    for name, size in (("half.gguf", whole.stat().st_size // 2), ("head.gguf", 40)):
        (tmp_path / name).write_bytes(whole.read_bytes()[:size])
        refused(tmp_path / name, "cut short or damaged .* put all its parts together")
    refused(write_gguf(model, tmp_path / "part.gguf", split_count=3), "one of 3 parts.*--merge")
    refused(write_gguf(model, tmp_path / "new.gguf", arch="newarch"), "reads no causal language")
    refused(
        write_gguf(model, tmp_path / "gap.gguf", left_out="blk.1.ffn_up.weight"),
        "weights are missing, such as model.layers.1.mlp.up_proj",
    )
    for was, now in ((b"gpt2", b"gptX"), (b".merges", b".mergeX")):
        other.write_bytes(whole.read_bytes().replace(was, now))
        refused(other, "reads no tokenizer from it")
    refused(whole, "chat template", template="{{ bos_token }}{{ nonsense(")


@needs_gguf
@pytest.mark.parametrize(("number", "fault"), [(0.0, "equally likely"), (torch.nan, "not finite")])
def test_a_model_without_its_numbers_is_refused(model, tmp_path, number, fault):
    broken = AutoModelForCausalLM.from_pretrained(model)
    for weight in broken.parameters():
        weight.data.fill_(number)
    broken.save_pretrained(model)
    file = write_gguf(model, tmp_path / "model.gguf")
    with pytest.raises(DataError, match=f"{file}.*{fault}"):
        import_gguf(file, tmp_path)


@pytest.mark.skipif(HAS_GGUF, reason="the package gguf is installed")
def test_without_the_package_the_error_says_how_to_install_it(tmp_path):
    with pytest.raises(DataError, match="the package gguf is missing; run `pip install gguf`"):
        import_gguf(tmp_path / "model.gguf", tmp_path / "folder")
