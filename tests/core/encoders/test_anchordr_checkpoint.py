"""AnchorDR as it is published is read whole, or refused with the reason."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from anchordr_world import SENTENCES, make_anchordr, save_published, train_pieces
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import T5Config, T5Model

from expandr_core.anchordr.model import AnchorDR
from expandr_core.encoders.anchordr_checkpoint import claims, read_published
from expandr_core.errors import DataError


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_pieces(tmp_path_factory.mktemp("pieces"))


@pytest.fixture
def model(pieces: Path) -> AnchorDR:
    return make_anchordr(pieces)


@pytest.fixture
def published(model: AnchorDR, tmp_path: Path) -> Path:
    return save_published(tmp_path / "anchordr", model)


def embed(model: AnchorDR) -> Tensor:
    with torch.no_grad():
        return model.eval()(model.preprocess(SENTENCES))["sentence_embedding"]


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    kept = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors")


def test_the_published_layout_is_read_whole(model, published):
    assert claims(published)
    again = read_published(published)
    assert torch.equal(embed(again), embed(model))
    assert again.max_seq_length == 512


def test_shards_and_the_other_name_of_the_tokenizer_are_read(model, published):
    (published / "sp.model").rename(published / "spiece.model")
    weights = load_file(published / "model.safetensors")
    (published / "model.safetensors").unlink()
    index = {}
    for number, stack in enumerate(("encoder", "decoder"), 1):
        name = f"model-0000{number}-of-00002.safetensors"
        part = {
            key: weight
            for key, weight in weights.items()
            if key.startswith((stack, "shared" if number == 1 else stack))
        }
        save_file(part, published / name)
        index |= dict.fromkeys(part, name)
    (published / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert torch.equal(embed(read_published(published)), embed(model))


def without_decoder(weights: dict[str, Tensor]) -> None:
    for name in [name for name in weights if name.startswith("decoder.")]:
        del weights[name]


def other_alias(weights: dict[str, Tensor]) -> None:
    weights["decoder.embed_tokens.weight"][5, 0] += 1


def without_a_bias(weights: dict[str, Tensor]) -> None:
    del weights["encoder.block.1.layer.1.DenseReluDense.wo.bias"]


def with_a_head(weights: dict[str, Tensor]) -> None:
    weights["lm_head.weight"] = torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (
            lambda folder: edit_weights(folder, without_decoder),
            ["without its decoder", "sentence-transformers 2.2.2", "use a checkpoint with decoder"],
        ),
        (
            lambda folder: edit_weights(folder, other_alias),
            ["decoder.embed_tokens.weight differs from shared.weight"],
        ),
        (
            lambda folder: edit_weights(folder, without_a_bias),
            ["missing", "layer.1.DenseReluDense"],
        ),
        (lambda folder: edit_weights(folder, with_a_head), ["unexpected (lm_head.weight)"]),
        (lambda folder: (folder / "sp.model").unlink(), ["no sp.model or spiece.model"]),
        (lambda folder: edit_config(folder, d_ff=None), ["config.json: d_ff is missing"]),
        (lambda folder: edit_config(folder, d_ff=64), ["of another shape"]),
        (
            lambda folder: edit_config(folder, feed_forward_proj="gated-gelu"),
            ["feed_forward_proj is 'gated-gelu'", "'relu'"],
        ),
        (
            lambda folder: edit_config(folder, pad_token_id=0),
            ["pad_token_id is 0", "but 1 in AnchorDR"],
        ),
        (lambda folder: edit_config(folder, vocab_size=9), ["do not fit together"]),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused_with_the_reason(published, damage, parts):
    damage(published)
    with pytest.raises(DataError) as caught:
        read_published(published)
    for part in parts:
        assert part in str(caught.value)


def test_a_t5_of_transformers_is_refused(tmp_path, pieces):
    config = T5Config(vocab_size=144, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    T5Model(config).save_pretrained(tmp_path)
    (tmp_path / "sp.model").write_bytes(pieces.read_bytes())
    with pytest.raises(DataError, match="a T5 of transformers"):
        read_published(tmp_path)
    assert claims(tmp_path)
    (tmp_path / "modules.json").write_text("[]")
    assert not claims(tmp_path)  # then it is sentence-transformers' own T5
