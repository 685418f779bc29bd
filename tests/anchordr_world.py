"""AnchorDR in small: a SentencePiece model trained here, random weights, and the published layout."""

import io
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from expandr_core.anchordr.layers import AnchorDRConfig
from expandr_core.anchordr.model import AnchorDR
from expandr_core.anchordr.tokenizer import AnchorDRTokenizer

SENTENCES = [
    "what is the capital of france ?",
    "the wing lifts the plane , and the tail steers it .",
    "don't panic -- it's ( only ) a test of lift and drag .",
    "paris is the capital , and lay0 lay1 lay2 tech3 tech4 tech5 tech6 tech7 are words .",
]
CONFIG = AnchorDRConfig(
    vocab_size=144, d_model=16, d_ff=32, num_heads=2, num_layers=2, num_decoder_layers=2
)


def train_pieces(folder: Path) -> Path:
    """Train a SentencePiece model whose special ids are AnchorDR's."""
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=written,
        vocab_size=80,
        hard_vocab_limit=False,
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        normalization_rule_name="nmt_nfkc_cf",
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sp.model").write_bytes(written.getvalue())
    return folder / "sp.model"


def make_anchordr(pieces: Path, config: AnchorDRConfig = CONFIG) -> AnchorDR:
    """Make a model of random weights; even relative positions and norms are random."""
    torch.manual_seed(0)
    model = AnchorDR(config, AnchorDRTokenizer(pieces))
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(weight, mean=1.0 if "weight" in name else 0.0, std=0.3)
    return model.eval()


def published_config(config: AnchorDRConfig = CONFIG) -> dict[str, Any]:
    """Return a config.json as on the hub, where AnchorDR is called a T5."""
    return {
        "architectures": ["T5Model"],
        "model_type": "t5",
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "d_kv": config.d_model // config.num_heads,
        "d_ff": config.d_ff,
        "num_heads": config.num_heads,
        "num_layers": config.num_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "dropout_rate": config.dropout_rate,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "relative_attention_num_buckets": 32,
        "feed_forward_proj": "relu",
        "pad_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 0,
        "transformers_version": "4.21.0.dev0",
    }


def published_weights(model: AnchorDR) -> dict[str, Tensor]:
    """Return the weights under the names of the hub, with the aliases of the shared embeddings."""
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    for stack in ("encoder", "decoder"):
        weights[f"{stack}.embed_tokens.weight"] = weights["shared.weight"].clone()
    return weights


def save_published(folder: Path, model: AnchorDR) -> Path:
    """Write a model as it is on the hub, but with safetensors weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(published_config(model.sizes)))
    save_file(published_weights(model), folder / "model.safetensors", {"format": "pt"})
    model.tokenizer.save(folder)
    return folder
