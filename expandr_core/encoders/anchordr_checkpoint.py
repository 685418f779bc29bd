"""The family of AnchorDR as it is published: a folder that calls itself a T5.

It has config.json (model_type t5), weights, and sp.model. The paper's code saves its retriever through
sentence-transformers 2.2.2, which keeps only the encoder of a T5. Such a folder is refused, since the
trained decoder is lost.
"""

import json
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expandr_core.encoders.sentence_transformer import fill_config
from expandr_core.errors import DataError
from expandr_core.options.retriever import ConventionOptions, Similarity
from expandr_core.runtime.model_folders import model_files
from expandr_core.store.store import sha256_of

if TYPE_CHECKING:
    from expandr_core.anchordr.model import AnchorDR

log = logging.getLogger(__name__)
_SIGN = "encoder.pos_embed.weight"  # a T5 has no learned positions
TOKENIZERS = ("sp.model", "spiece.model")
PUBLISHED = "yiqingx/AnchorDR"
PUBLISHED_TOKENIZER = "1f7dda6f68d6676a944418205def0e463eaa7b9aa3868f99b1ac122c849af152"  # SHA-256
_ALIASES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_FIXED = {
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "relu",
    "pad_token_id": 1,
    "decoder_start_token_id": 0,
}


def claims(folder: Path) -> bool:
    """Tell whether to read a folder as AnchorDR: a T5 that has AnchorDR's weights or no modules.json.

    A T5 without either is refused, since other T5s are supported as sentence-transformers models only.
    """
    path = folder / "config.json"
    if not path.is_file() or json.loads(path.read_bytes()).get("model_type") != "t5":
        return False
    return not (folder / "modules.json").is_file() or _is_anchordr(folder)


def import_into(
    folder: Path, out: Path, options: ConventionOptions, similarity: Similarity
) -> None:
    """Write AnchorDR as a sentence-transformers model that compares by inner product."""
    from sentence_transformers import SentenceTransformer

    if options.name != "model":
        raise DataError(
            f"{folder}: AnchorDR does not follow the convention {options.name!r}; leave "
            "retriever.convention at 'model'"
        )
    if (folder / "modules.json").exists():
        log.warning("AnchorDR's modules.json is left out, as it describes the encoder of a T5")
    model = SentenceTransformer(
        modules=[read_published(folder)], device="cpu", similarity_fn_name="dot"
    )
    model.save(str(out), create_model_card=False)
    fill_config(out, options, "model")


def _is_anchordr(folder: Path) -> bool:
    from safetensors import safe_open

    for path in _weight_files(folder):
        with safe_open(path, "pt") as weights:
            if _SIGN in weights.keys():  # noqa: SIM118
                return True
    return False


def read_published(folder: Path) -> "AnchorDR":
    """Read AnchorDR from a folder as published, with safetensors weights.

    Raises:
        DataError: if it is another model, lacks its decoder, or its files do not fit together.
    """
    from safetensors.torch import load_file

    from expandr_core.anchordr.model import AnchorDR
    from expandr_core.anchordr.tokenizer import AnchorDRTokenizer

    if not _is_anchordr(folder):
        raise DataError(
            f"{folder}: a T5 of transformers ({_SIGN} is missing), not AnchorDR; to use another T5, "
            "name a sentence-transformers model, with its modules.json"
        )
    config = _sizes(folder)
    weights = {}
    for path in _weight_files(folder):
        weights |= load_file(path)
    if not any(name.startswith("decoder.") for name in weights):
        raise DataError(
            f"{folder}: AnchorDR without its decoder, whose output is the text's vector; "
            "sentence-transformers 2.2.2 saves the encoder only, so the training is lost: "
            "use a checkpoint with decoder.* weights, such as yiqingx/AnchorDR"
        )
    for name in _ALIASES:
        alias = weights.pop(name, None)
        if alias is not None and not alias.equal(weights["shared.weight"]):
            raise DataError(
                f"{folder}: {name} differs from shared.weight, but AnchorDR has a single table of "
                "token embeddings; get the model again"
            )
    tokenizers = _tokenizers(folder)
    if not tokenizers:
        raise DataError(
            f"{folder}: no {' or '.join(TOKENIZERS)}; get the model's own tokenizer, or set "
            f"retriever.tokenizer to {PUBLISHED}, or to a folder that has it"
        )
    return AnchorDR.of_weights(config, AnchorDRTokenizer(tokenizers[0]), weights, folder)


def _tokenizers(folder: Path) -> list[Path]:
    return [folder / name for name in TOKENIZERS if (folder / name).is_file()]


def add_tokenizer(folder: Path, tokenizer: Path, sha256: str) -> None:
    """Copy AnchorDR's tokenizer into a model folder that lacks it.

    Args:
        folder: of the model.
        tokenizer: a SentencePiece model.
        sha256: what its content must be.

    Raises:
        DataError: if the model is not AnchorDR, has another tokenizer, or the file has changed.
    """
    if not claims(folder):
        raise DataError(
            f"{folder}: retriever.tokenizer is for AnchorDR, which this is not; leave it empty"
        )
    own = _tokenizers(folder)
    if own and sha256_of(own[0]) != sha256:
        raise DataError(
            f"{folder}: {own[0].name} differs from retriever.tokenizer ({tokenizer}); leave that empty "
            "to use the model's own tokenizer"
        )
    copy = shutil.copyfile(tokenizer, folder / TOKENIZERS[0])
    if sha256_of(copy) != sha256:
        raise DataError(f"{tokenizer} changed during the run; start the run again")


def check_published(name: str, tokenizer: Path, sha256: str) -> None:
    """Compare a tokenizer with the one that AnchorDR was published with.

    Another one is refused under AnchorDR's name on the hub, and elsewhere allowed: the import checks
    that it fits the model's embeddings.

    Raises:
        DataError: if the published one has changed.
    """
    if sha256 == PUBLISHED_TOKENIZER:
        return
    if name == PUBLISHED and not Path(name).is_dir():
        raise DataError(
            f"{tokenizer}: not the tokenizer that AnchorDR was published with (its SHA-256 begins with "
            f"{sha256[:8]}, not {PUBLISHED_TOKENIZER[:8]}); get the file again"
        )
    log.warning("%s is not the tokenizer that AnchorDR was published with", tokenizer)


def _weight_files(folder: Path) -> list[Path]:
    names = model_files(folder)
    return [folder / name for name in names if name.endswith(".safetensors") and "/" not in name]


def _sizes(folder: Path) -> Any:
    """Read the sizes from config.json; refuse settings that AnchorDR does not have."""
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
                f"{path}: {name} is {config[name]!r}, but {value!r} in AnchorDR; name a folder of "
                "AnchorDR"
            )
    return AnchorDRConfig(**{name: config[name] for name in names})
