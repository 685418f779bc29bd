"""The family of plain transformers encoders, which a convention makes sentence-transformers models.

Without the files written here, sentence-transformers would pool by the mean of the tokens, or for a
causal LM by the last token within a chat template.
"""

import json
from pathlib import Path
from typing import Any

from expandr_core.encoders.portable import OLD, old_pooling
from expandr_core.encoders.sentence_transformer import fill_config, move_files
from expandr_core.errors import DataError
from expandr_core.options.conventions import CONVENTIONS, Convention
from expandr_core.options.retriever import ConventionOptions, Similarity
from expandr_core.runtime.weights import load_without_weights


def claims(folder: Path) -> bool:
    """Tell whether transformers wrote a folder, without sentence-transformers' modules.json."""
    return not (folder / "modules.json").is_file()


def import_into(
    folder: Path, out: Path, options: ConventionOptions, similarity: Similarity
) -> None:
    """Move the model, and add the files that say how the convention uses it."""
    if options.name not in CONVENTIONS:
        listed = "".join(f"\n  {name} = {each}" for name, each in CONVENTIONS.items())
        raise DataError(
            f"{folder}: no sentence-transformers configuration (modules.json), so nothing says how "
            f"its tokens become a vector; set retriever.convention to the model's:{listed}"
        )
    move_files(folder, out)
    _write_modules(out, CONVENTIONS[options.name])
    fill_config(out, options, similarity)


def _write_modules(folder: Path, convention: Convention) -> None:
    """Write modules.json, the pooling and the longest text; let the tokenizer end texts."""
    from transformers import AutoModel

    # encoders do not use the pooler, so it may be missing
    model = load_without_weights(AutoModel, folder, optional="pooler.")
    config = model.config
    if config.is_encoder_decoder:
        raise DataError(
            f"{folder}: {config.model_type} has an encoder and a decoder, for which there is no "
            "convention; name a sentence-transformers model, with its modules.json"
        )
    limit = min(convention.max_tokens, getattr(config, "max_position_embeddings", None) or 10**9)
    if convention.pooling == "lasttoken":
        _end_texts(folder)
    pooling = {"embedding_dimension": config.hidden_size, "include_prompt": True}
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{OLD}.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{OLD}.Pooling"},
    ]
    contents = {
        "1_Pooling/config.json": old_pooling(pooling | {"pooling_mode": convention.pooling}),
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": limit, "do_lower_case": False},
    }
    (folder / "1_Pooling").mkdir()
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, indent=2))


def _end_texts(folder: Path) -> None:
    """Let the tokenizer end each text with an end token and have a padding token.

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
