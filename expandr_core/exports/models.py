"""Models as folders that plain libraries load, and that behave there as they were measured here.

What our options add to a folder is written into its files: the longest text and the similarity of a
retriever, the sampling, the ends of a text and the chat template of a language model.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from expandr_core.generation.adapters import CONFIG, write_config
from expandr_core.options.loop import JointLoopOptions
from expandr_core.options.retriever import EncodingOptions
from expandr_core.runtime.model_folders import model_files
from expandr_core.store.manifests import MANIFEST

_OF_TOKENIZER = ("tokenizer", "special_tokens", "added_tokens", "chat_template", "vocab", "merges")
_OF_PEOPLE = ("", ".md", ".txt")  # licence, notice, model card


def export_retriever(source: Path, folder: Path, encoding: EncodingOptions) -> None:
    """Write a retriever for plain sentence-transformers, in float32.

    It cuts texts where ours does, has the prompts "query" and "document", and `similarity` compares as
    search did. AnchorDR also needs our package, and `encoders.load.load_sentence_model`.

    Args:
        source: folder of an artifact.
        folder: receives the files; it exists.
        encoding: how texts became vectors.
    """
    from expandr_core.encoders.load import load_retriever, normalizes
    from expandr_core.encoders.portable import make_portable

    model = load_retriever(source, "cpu", encoding)
    model.similarity_fn_name = "cosine" if normalizes(model, encoding) else "dot"
    model.save(str(folder), create_model_card=False)
    make_portable(folder)
    _copy(source, folder, [each.name for each in source.iterdir() if each.suffix in _OF_PEOPLE])


def export_llm(source: Path, folder: Path, options: JointLoopOptions) -> None:
    """Write a whole language model for plain transformers and vLLM.

    Args:
        source: folder of an artifact.
        folder: receives the files; it exists.
        options: of the run that measured it.
    """
    _copy(source, folder, model_files(source))
    _behave_as_measured(source, folder, options)


def export_adapter(
    base: Path, adapter: Path, base_name: str, folder: Path, options: JointLoopOptions
) -> None:
    """Write an adapter for plain PEFT and vLLM, with the tokenizer of its base.

    Args:
        base: folder of the language model that it adapts.
        adapter: folder of the artifact.
        base_name: by which others find the base.
        folder: receives the files; it exists.
        options: of the run that measured it.
    """
    shutil.copytree(
        adapter, folder, dirs_exist_ok=True, ignore=lambda _, names: {MANIFEST} & {*names}
    )
    _copy(base, folder, [each for each in model_files(base) if each.startswith(_OF_TOKENIZER)])
    write_config(folder, base_model_name_or_path=base_name)
    _behave_as_measured(base, folder, options)


def _copy(source: Path, folder: Path, names: list[str]) -> None:
    for name in names:
        target = folder / name
        if name != CONFIG and (source / name).is_file() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target)


def _behave_as_measured(source: Path, folder: Path, options: JointLoopOptions) -> None:
    """Write the chat template with its variables, the sampling, and every token that ends a text."""
    from expandr_core.generation.chat_templates import chat_options, template_of
    from expandr_core.generation.control_tokens import encode_chat
    from expandr_core.generation.engine import Codec
    from expandr_core.generation.prompts import prompt_ids

    given = template_of(source)
    codec = Codec(source, chat_options(given, options.llm.template, options.llm.date))
    tokenizer = codec.tokenizer
    template = str(tokenizer.chat_template)
    if prompt_ids(tokenizer, "a") != encode_chat(tokenizer, "a"):
        template = "{{ bos_token }}" + template  # ours begins with it; the template left it out
    if template != given:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    settings = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": sorted(codec.ends),
        "pad_token_id": tokenizer.pad_token_id,
        **sampling_of(options),
    }
    known = {name: value for name, value in settings.items() if value is not None}
    (folder / "generation_config.json").write_text(json.dumps(known, indent=2))


def sampling_of(options: JointLoopOptions) -> dict[str, Any]:
    """Return how expansions were sampled, by transformers' names; of several temperatures the first."""
    sampling = options.expand.expansion
    temperature = sampling.sampling_temperatures[0]
    chosen = {"do_sample": temperature > 0, "max_new_tokens": sampling.max_new_tokens}
    if temperature > 0:  # 0 as top_k is no limit; the libraries' default is 50
        chosen |= {"temperature": temperature, "top_p": sampling.top_p, "top_k": 0}
    return chosen
