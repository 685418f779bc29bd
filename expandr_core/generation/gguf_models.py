"""Turn a GGUF of a causal language model into a model folder, with a chat template."""

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

from expandr_core.errors import DataError, first_line

PLAIN = (  # for a model that knows no turns: what is asked, an empty line, and the answer
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}\n\n{% endif %}{% endfor %}"
)


def import_gguf(file: Path, folder: Path, template: str = "") -> list[str]:
    """Write the model in a GGUF into a folder, as safetensors with a tokenizer, and try it.

    Weights keep their type if it is float32, float16 or bfloat16; what is quantised becomes bfloat16.

    Args:
        file: the GGUF.
        folder: an empty one.
        template: a chat template; by default the file's own or, without one, `PLAIN`.

    Returns:
        Remarks on what became of the model.

    Raises:
        DataError: if the file is no complete GGUF of a causal LM that transformers knows.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging

    from expandr_core.generation.check_llm import check_llm

    remarks, dtype = _examine(file)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as alone:  # or files beside it would be taken for its own
        Path(alone, "model.gguf").symlink_to(file.absolute())
        model = _load(file, alone, dtype)
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(
                alone, gguf_file="model.gguf", local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # of whatever it misses in the file
            raise DataError(
                f"{file}: transformers reads no tokenizer from it ({type(error).__name__}: "
                f"{first_line(error)}); get the original model, or a GGUF of another"
            ) from error
    if not template and not tokenizer.chat_template:
        remarks.append(
            "the file has no chat template, as base models have none; it gets a plain one"
        )
    tokenizer.chat_template = template or tokenizer.chat_template or PLAIN
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    try:
        check_llm(folder)
    except DataError as error:
        raise DataError(str(error).replace(str(folder), str(file))) from error
    return remarks


def _examine(file: Path) -> tuple[list[str], str]:
    """Check what a GGUF says of itself; return remarks, and the type for its weights."""
    if importlib.util.find_spec("gguf") is None:
        raise DataError("the package gguf is missing; run `pip install gguf`")
    from gguf import GGMLQuantizationType as Kind
    from gguf import GGUFReader

    if not file.is_file():
        raise DataError(f"{file}: {'not a' if file.exists() else 'no such'} file; correct its path")
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise DataError(f"{file}: not a GGUF; it begins otherwise, so name another file")
    try:
        reader = GGUFReader(file)
        split = reader.get_field("split.count")
        parts = int(split.contents()) if split else 1
    except Exception as error:  # whatever it stumbles upon beyond the end
        raise DataError(
            f"{file}: the GGUF is cut short or damaged ({first_line(error)}); get it again, or put "
            "all its parts together, in their order"
        ) from error
    if parts > 1:
        raise DataError(
            f"{file}: one of {parts} parts, and transformers reads only whole files; join them with "
            "`llama-gguf-split --merge FIRST_PART WHOLE_FILE`"
        )
    remarks = []
    if any(tensor.name == "rope_freqs.weight" for tensor in reader.tensors):
        remarks.append(
            "its scaling of rotary positions is lost, as transformers does not read it from a GGUF; "
            "copy rope_parameters from the original model's config.json"
        )
    kinds = {tensor.tensor_type for tensor in reader.tensors if len(tensor.shape) > 1}
    plain = {Kind.F32: "float32", Kind.F16: "float16"}
    return remarks, plain[kinds.pop()] if len(kinds) == 1 and kinds <= plain.keys() else "bfloat16"


def _load(file: Path, alone: str, dtype: str) -> Any:
    """Load the model, and put its weights into one that knows nothing of the GGUF and can be saved."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            alone,
            gguf_file="model.gguf",
            local_files_only=True,
            trust_remote_code=False,
            quantization_config=GgufConfig(dequantize=True),
            dtype=getattr(torch, dtype),
            output_loading_info=True,
        )
    except Exception as error:
        raise DataError(
            f"{file}: transformers reads no causal language model from it ({first_line(error)}); get "
            "the original model, or a GGUF of another"
        ) from error
    packed, found = loaded
    if missing := sorted(found["missing_keys"]):
        raise DataError(
            f"{file}: {len(missing)} weights are missing, such as {missing[0]}; get a complete GGUF"
        )
    config = packed.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = type(packed)(config)
    model.load_state_dict(packed.state_dict(), assign=True, strict=False)
    model.tie_weights()
    model.generation_config = packed.generation_config
    return model
