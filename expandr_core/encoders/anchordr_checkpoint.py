"""AnchorDR's published checkpoint: a folder that calls itself a T5, and what can be wrong with it.

config.json (model_type t5), weights, and sp.model. The paper's own code saves its retriever through
sentence-transformers 2.2.2, which keeps of a T5 only the encoder; such a folder is recognised and
refused, as the trained decoder is gone.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expandr_core.errors import DataError
from expandr_core.runtime.model_folders import model_files

if TYPE_CHECKING:
    from expandr_core.anchordr.model import AnchorDR

_OWN = "encoder.pos_embed.weight"  # a T5 has no learned positions
_TOKENIZERS = ("sp.model", "spiece.model")
_ALIASES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_FIXED = {
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "relu",
    "pad_token_id": 1,
    "decoder_start_token_id": 0,
}


def is_published_anchordr(folder: Path) -> bool:
    """Tell whether a folder has to be read as AnchorDR, or is refused as such.

    That is a T5 by its config.json, with AnchorDR's weights or without modules.json: a T5 of
    transformers is known only as a sentence-transformers model.
    """
    path = folder / "config.json"
    if not path.is_file() or json.loads(path.read_bytes()).get("model_type") != "t5":
        return False
    return not (folder / "modules.json").is_file() or _has_own_weights(folder)


def _has_own_weights(folder: Path) -> bool:
    from safetensors import safe_open

    for path in _weight_files(folder):
        with safe_open(path, "pt") as weights:
            if _OWN in weights.keys():  # noqa: SIM118
                return True
    return False


def read_published(folder: Path) -> "AnchorDR":
    """Read AnchorDR from a folder as it is published, with safetensors weights.

    Raises:
        DataError: if it is another model, has lost its decoder, or does not fit together.
    """
    from safetensors.torch import load_file

    from expandr_core.anchordr.model import AnchorDR
    from expandr_core.anchordr.tokenizer import AnchorDRTokenizer

    if not _has_own_weights(folder):
        raise DataError(
            f"{folder}: a T5 of transformers ({_OWN} is missing), not AnchorDR; for another T5 name "
            "a sentence-transformers model, with its modules.json"
        )
    config = _sizes(folder)
    weights = {}
    for path in _weight_files(folder):
        weights |= load_file(path)
    if not any(name.startswith("decoder.") for name in weights):
        raise DataError(
            f"{folder}: AnchorDR without its decoder, whose output is the text's vector; "
            "sentence-transformers 2.2.2 saves the encoder alone, so what was trained is lost: "
            "use a checkpoint with decoder.* weights, such as yiqingx/AnchorDR"
        )
    for name in _ALIASES:
        alias = weights.pop(name, None)
        if alias is not None and not alias.equal(weights["shared.weight"]):
            raise DataError(
                f"{folder}: {name} differs from shared.weight, but AnchorDR has one table of token "
                "embeddings; get the model again"
            )
    found = [folder / name for name in _TOKENIZERS if (folder / name).is_file()]
    if not found:
        raise DataError(f"{folder}: no {' or '.join(_TOKENIZERS)}; get the model's own tokenizer")
    return AnchorDR.of_weights(config, AnchorDRTokenizer(found[0]), weights, folder)


def _weight_files(folder: Path) -> list[Path]:
    names = model_files(folder)
    return [folder / name for name in names if name.endswith(".safetensors") and "/" not in name]


def _sizes(folder: Path) -> Any:
    """Read the sizes from config.json; refuse what AnchorDR does not have."""
    from expandr_core.anchordr.layers import AnchorDRConfig

    path = folder / "config.json"
    config = json.loads(path.read_bytes())
    names = [name for name in AnchorDRConfig.__dataclass_fields__ if name != "max_seq_length"]
    missing = [name for name in names if name not in config]
    if missing:
        raise DataError(f"{path}: {missing[0]} is missing; get the model's own config.json")
    fixed = _FIXED | {"d_kv": config["d_model"] // config["num_heads"]}
    for name, value in fixed.items():
        if config.get(name, value) != value:
            raise DataError(
                f"{path}: {name} is {config[name]!r}, but in AnchorDR it is {value!r}; name a folder "
                "of AnchorDR"
            )
    return AnchorDRConfig(**{name: config[name] for name in names})
