"""Encoders that transformers wrote, made modules of sentence-transformers by a convention.

The files that are written are those of sentence-transformers; its own way without them would be the
mean of the tokens, or for a causal LM the last one within a chat template.
"""

import json
from pathlib import Path
from typing import Any, cast

from expandr_core.encoders.conventions import Convention
from expandr_core.encoders.portable import OLD, pooling
from expandr_core.errors import DataError, first_line


def write_modules(folder: Path, convention: Convention) -> None:
    """Write modules.json, the pooling, and the longest text; let the tokenizer end texts.

    Raises:
        DataError: if the model is not an encoder, or its weights or tokenizer do not fit.
    """
    config = _check_model(folder)
    limit = min(convention.max_tokens, getattr(config, "max_position_embeddings", None) or 10**9)
    if convention.pooling == "lasttoken":
        _end_texts(folder)
    said = {"embedding_dimension": config.hidden_size, "include_prompt": True}
    part = folder / "1_Pooling"
    part.mkdir()
    (part / "config.json").write_text(
        json.dumps(pooling(said | {"pooling_mode": convention.pooling}), indent=2)
    )
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{OLD}.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{OLD}.Pooling"},
    ]
    limits = {"max_seq_length": limit, "do_lower_case": False}
    (folder / "modules.json").write_text(json.dumps(modules, indent=2))
    (folder / "sentence_bert_config.json").write_text(json.dumps(limits, indent=2))


def _check_model(folder: Path) -> Any:
    """Check what the headers of the weights tell; return the model's configuration.

    Of the model, a pooler may be missing, which is not used; of the file, a head may be left over.
    """
    from transformers import AutoModel

    try:
        model, loaded = cast(
            tuple[Any, dict[str, Any]],
            AutoModel.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                device_map="meta",
                output_loading_info=True,
            ),
        )
    except Exception as error:
        raise DataError(f"{folder}: the model does not load ({first_line(error)})") from error
    if model.config.is_encoder_decoder:
        raise DataError(
            f"{folder}: {model.config.model_type} is an encoder and a decoder, for which there is "
            "no convention; name a sentence-transformers model, with its modules.json"
        )
    modules = {name for name, _ in model.named_modules() if name}
    prefix = f"{model.base_model_prefix}."  # which a file of a model with a head has
    faults = {
        "missing": [name for name in loaded["missing_keys"] if not name.startswith("pooler.")],
        "of another shape": [str(name) for name in loaded["mismatched_keys"]],
        "unexpected": [
            name
            for name in loaded["unexpected_keys"]
            if name.removeprefix(prefix).rpartition(".")[0] in modules
        ],
    }
    for fault, names in faults.items():
        if names:
            raise DataError(
                f"{folder}: {len(names)} weights are {fault} ({', '.join(sorted(names)[:3])}), so "
                f"config.json is not theirs; get the model again"
            )
    return model.config


def _end_texts(folder: Path) -> None:
    """Let the tokenizer put an end token after a text, if it does not, and pad.

    Raises:
        DataError: if it cannot.
    """
    from tokenizers.processors import Sequence, TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    ends = _ends_texts(tokenizer)
    if ends and tokenizer.pad_token is not None:
        return
    end = tokenizer.eos_token
    remedy = "add the model's own eos_token to tokenizer_config.json"
    if end is None:
        raise DataError(f"{folder}: the tokenizer has no end token; {remedy}")
    if not ends:
        backend = tokenizer.backend_tokenizer
        last = TemplateProcessing(
            single=f"$A {end}",
            pair=f"$A $B {end}",
            special_tokens=[(end, tokenizer.eos_token_id)],
        )
        before = backend.post_processor
        backend.post_processor = Sequence([before, last]) if before is not None else last
    tokenizer.pad_token = tokenizer.pad_token or end
    tokenizer.save_pretrained(folder)
    if not _ends_texts(
        AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    ):
        raise DataError(f"{folder}: the tokenizer does not put {end!r} after a text; {remedy}")


def _ends_texts(tokenizer: Any) -> bool:
    return tokenizer("A text.")["input_ids"][-1] in tokenizer.all_special_ids
