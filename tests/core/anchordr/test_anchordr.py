"""AnchorDR is BART plus relative positions, does not see padding, trains, and survives being saved."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from anchordr_world import CONFIG, SENTENCES, make_anchordr, train_pieces
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers import BartConfig, BartModel

from expandr_core.anchordr.layers import AnchorDRConfig, relative_bucket
from expandr_core.anchordr.model import AnchorDR
from expandr_core.anchordr.tokenizer import AnchorDRTokenizer
from expandr_core.errors import DataError


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_pieces(tmp_path_factory.mktemp("pieces"))


@pytest.fixture
def model(pieces: Path) -> AnchorDR:
    return make_anchordr(pieces)


def embed(model: AnchorDR, features: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(dict(features))["sentence_embedding"]


@pytest.fixture
def batch(model: AnchorDR) -> dict[str, Tensor]:
    """Texts of different lengths, the longest of which reaches distance 39: buckets 2 to 28."""
    texts = [SENTENCES[0], " ".join(SENTENCES[:2]), "a", ""]
    features = model.preprocess(texts)
    assert features["attention_mask"].sum(1).tolist()[2:] == [3, 2]
    assert features["input_ids"].shape[1] > 40
    return features


# The buckets of relative positions


def test_the_grid_of_buckets_is_that_of_the_formula():
    """b(n) = n below 8, else min(15, 8 + ceil(7 ln(n/8) / ln(127/8))); the row is 15 + sign * b."""

    def row(distance: int) -> int:
        n = abs(distance)
        steps = n if n < 8 else min(15, 8 + math.ceil(7 * math.log(n / 8) / math.log(127 / 8)))
        return 15 + (steps if distance > 0 else -steps)

    places = torch.arange(1024)
    grid = relative_bucket(places[None] - places[:, None])
    assert grid[0].tolist() == [row(distance) for distance in range(1024)]
    assert grid[:, 0].tolist() == [row(-distance) for distance in range(1024)]
    assert (grid.min(), grid.max(), grid[0, 0]) == (0, 30, 15)
    assert torch.equal(grid + grid.T, torch.full_like(grid, 30))
    starts = [n for n in range(1, 1024) if grid[0, n] != grid[0, n - 1]]
    assert starts[7:] == [8, 9, 12, 18, 27, 39, 58, 86]


# The published size


def test_the_published_sizes_give_the_published_number_of_parameters(pieces):
    with torch.device("meta"):
        published = AnchorDR(AnchorDRConfig(), AnchorDRTokenizer(pieces))
    assert sum(weight.numel() for weight in published.parameters()) == 225_618_432


# Parity with BART


def as_bart(model: AnchorDR) -> BartModel:
    """Make BART of the same weights; it has no relative positions."""
    sizes = model.sizes
    config = BartConfig(
        vocab_size=sizes.vocab_size,
        d_model=sizes.d_model,
        encoder_layers=sizes.num_layers,
        decoder_layers=sizes.num_decoder_layers,
        encoder_attention_heads=sizes.num_heads,
        decoder_attention_heads=sizes.num_heads,
        encoder_ffn_dim=sizes.d_ff,
        decoder_ffn_dim=sizes.d_ff,
        activation_function="relu",
        max_position_embeddings=1024,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=0,
    )
    config._attn_implementation = "eager"
    bart = BartModel(config).eval()
    weights = {
        bart_name(name): weight
        for name, weight in model.state_dict().items()
        if "relative" not in name
    }
    for stack in ("encoder", "decoder"):
        weights[f"{stack}.embed_tokens.weight"] = weights["shared.weight"]
    bart.load_state_dict(weights)
    return bart


def bart_name(name: str) -> str:
    for ours, theirs in {
        "pos_embed": "embed_positions",
        "first_layer_norm": "layernorm_embedding",
        "block.": "layers.",
        ".SelfAttention.": ".self_attn.",
        ".EncDecAttention.": ".encoder_attn.",
        ".q.": ".q_proj.",
        ".k.": ".k_proj.",
        ".v.": ".v_proj.",
        ".o.": ".out_proj.",
        "DenseReluDense.wi": "fc1",
        "DenseReluDense.wo": "fc2",
    }.items():
        name = name.replace(ours, theirs)
    last = "layer.1" if name.startswith("encoder") else "layer.2"
    name = name.replace(f"{last}.layer_norm", "final_layer_norm").replace(f"{last}.", "")
    name = name.replace("layer.0.layer_norm", "self_attn_layer_norm")
    name = name.replace("layer.1.layer_norm", "encoder_attn_layer_norm")
    return name.replace("layer.0.", "").replace("layer.1.", "")


def test_without_relative_positions_it_is_bart(model, batch):
    for name, weight in model.named_parameters():
        if "relative" in name:
            torch.nn.init.zeros_(weight)
    start = torch.zeros(len(batch["input_ids"]), 1, dtype=torch.long)
    with torch.no_grad():
        theirs = as_bart(model)(**batch, decoder_input_ids=start).last_hidden_state[:, 0]
    torch.testing.assert_close(embed(model, batch), theirs, atol=1e-5, rtol=0)


def test_with_relative_positions_it_is_bart_with_them_added_to_the_mask(model, batch):
    bart, ids, is_token = as_bart(model), batch["input_ids"], batch["attention_mask"]
    encoder, places = bart.encoder, torch.arange(ids.shape[1])
    grid = relative_bucket(places[None] - places[:, None])
    padding = (1 - is_token)[:, None, None] * torch.finfo(torch.float32).min
    start = torch.zeros(len(ids), 1, dtype=torch.long)
    with torch.no_grad():
        hidden = encoder.embed_tokens(ids) + encoder.embed_positions(ids)
        hidden = encoder.layernorm_embedding(hidden)
        for ours, theirs in zip(model.encoder.block, encoder.layers, strict=True):
            table = ours.layer[0].SelfAttention.relative_attention_bias.weight  # (32, heads)
            bias = table[grid].permute(2, 0, 1)
            output = theirs(hidden, attention_mask=bias + padding)
            hidden = output if isinstance(output, Tensor) else output[0]
        decoded = bart.decoder(
            input_ids=start, encoder_hidden_states=hidden, encoder_attention_mask=is_token
        )
    expected = decoded.last_hidden_state[:, 0]
    torch.testing.assert_close(embed(model, batch), expected, atol=1e-5, rtol=0)
    for weight in (each for name, each in model.named_parameters() if "relative" in name):
        torch.nn.init.zeros_(weight)
    assert (embed(model, batch) - expected).abs().max() > 0.01  # they do matter


# Invariance


@pytest.mark.parametrize("padding", [1, 7, 300])
def test_padding_changes_nothing(model, batch, padding):
    wider = {
        "input_ids": torch.nn.functional.pad(batch["input_ids"], (0, padding), value=1),
        "attention_mask": torch.nn.functional.pad(batch["attention_mask"], (0, padding)),
    }
    torch.testing.assert_close(embed(model, wider), embed(model, batch), atol=1e-5, rtol=0)


def test_the_batch_changes_nothing(model):
    alone = torch.cat([embed(model, model.preprocess([text])) for text in SENTENCES])
    together = embed(model, model.preprocess(SENTENCES))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert torch.pdist(together).min() > 0.01


def test_the_longest_text_takes_all_1024_positions(model):
    model.max_seq_length = 5000
    features = model.preprocess([" ".join(SENTENCES * 30)])
    assert features["input_ids"].shape == (1, 1024)
    assert embed(model, features).isfinite().all()


def test_bfloat16_autocast_gives_nearly_the_same(model, batch):
    with torch.autocast("cpu", torch.bfloat16):
        rounded = embed(model, batch)
    similarity = torch.cosine_similarity(rounded.float(), embed(model, batch))
    assert similarity.min() > 0.999


# As a module of sentence-transformers


def train_a_step(model: SentenceTransformer) -> None:
    """Take an optimiser step as the trainer does, in bfloat16 autocast and with dropout."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2)
    with torch.autocast("cpu", torch.bfloat16):
        vectors = [
            model(model.preprocess(texts))["sentence_embedding"]
            for texts in (SENTENCES[:2], SENTENCES[2:])
        ]
        torch.nn.functional.cross_entropy(vectors[0] @ vectors[1].T, torch.arange(2)).backward()
    assert {name for name, weight in model.named_parameters() if weight.grad is None} == set()
    optimizer.step()
    model.eval()


def test_a_trained_model_gives_the_same_bits_after_it_was_saved(model, tmp_path):
    before = SentenceTransformer(modules=[model], device="cpu", similarity_fn_name="dot")
    untrained = before.encode(SENTENCES)
    train_a_step(before)
    vectors = before.encode(SENTENCES)
    assert np.abs(vectors - untrained).max() > 0.01
    before.save(str(tmp_path), create_model_card=False)

    written = load_file(tmp_path / "model.safetensors")
    assert written.keys() == model.state_dict().keys()
    assert any(name.startswith("decoder.block.1.layer.2") for name in written)
    again = SentenceTransformer(modules=[AnchorDR.load(str(tmp_path))], device="cpu")
    assert np.array_equal(again.encode(SENTENCES), vectors)
    assert again.get_embedding_dimension() == CONFIG.d_model
    assert again.max_seq_length == 512


def test_a_saved_limit_is_kept(model, tmp_path):
    limited = SentenceTransformer(modules=[model], device="cpu")
    limited.max_seq_length = 8
    limited.save(str(tmp_path), create_model_card=False)
    again = AnchorDR.load(str(tmp_path))
    assert again.preprocess([SENTENCES[1]])["input_ids"].shape == (1, 8)


def test_prompts_are_prepended(model):
    with_prompt = SentenceTransformer(modules=[model], device="cpu", prompts={"query": "paris "})
    plain, prompted = with_prompt.encode(["paris wing"]), with_prompt.encode_query(["wing"])
    assert np.array_equal(plain, prompted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("decoder.pos_embed.weight"), "1 of AnchorDR's weights are missing"),
        (lambda w: w.update(new=torch.zeros(1)), "1 of AnchorDR's weights are unexpected"),
        (
            lambda w: w.update({"shared.weight": torch.zeros(3, 16)}),
            r"of another shape \(shared.weight\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(model, tmp_path, change, message):
    model_of_one = SentenceTransformer(modules=[model], device="cpu")
    model_of_one.save(str(tmp_path), create_model_card=False)
    weights = load_file(tmp_path / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=message):
        AnchorDR.load(str(tmp_path))


def test_sizes_that_do_not_fit_together_are_refused(pieces):
    for changes in ({"num_heads": 3}, {"vocab_size": 20}):
        with pytest.raises(DataError, match="do not fit together"):
            make_anchordr(pieces, replace(CONFIG, **changes))
