"""LoRA adapters as folders: what they say of themselves, and the sum of two.

An adapter adds `scale * B @ A` to the weight of each adapted layer, with `scale` = alpha / rank. The
sum of two is an adapter again, whose rank is the sum of theirs:
`s1 * B1 @ A1 + s2 * B2 @ A2 = [s1 * B1, s2 * B2] @ [A1; A2]`.
"""

import json
from pathlib import Path
from typing import Any

from expandr_core.artifacts import Artifact
from expandr_core.store import Store

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def language_model(store: Store, llm: Artifact) -> dict[str, Artifact]:
    """Return what runs a language model, by role: "llm" and, if it is kept apart, its "adapter"."""
    if llm.key.rpartition("-")[0] != "dpo":
        return {"llm": llm}
    return {"llm": Artifact(**store.manifest(llm.key)["inputs"]["llm"]), "adapter": llm}


def read_config(folder: Path) -> dict[str, Any]:
    """Read the configuration of an adapter."""
    return json.loads((folder / CONFIG).read_text())


def write_config(folder: Path, **changes: Any) -> None:
    """Change the configuration of an adapter.

    PEFT writes the adapted layers as a set, in an order of chance; here they are sorted.
    """
    values = read_config(folder) | changes
    values["target_modules"] = sorted(values["target_modules"])
    (folder / CONFIG).write_text(json.dumps(values, indent=1))


def add(other: Path, folder: Path) -> None:
    """Add another adapter of the same model, which may adapt other layers, to the one in a folder."""
    import torch
    from safetensors.torch import load_file, save_file

    paths = (other, folder)
    configs = [read_config(path) for path in paths]
    weights = [load_file(path / WEIGHTS) for path in paths]
    total = sum(config["r"] for config in configs)
    together = {}
    for name, like in sorted((weights[0] | weights[1]).items()):
        across = 0 if "lora_A" in name else 1  # A is (rank, in), B is (out, rank)
        parts = []
        for own, config in zip(weights, configs, strict=True):
            shape = list(like.shape)
            shape[across] = config["r"]
            part = own.get(name, like.new_zeros(shape))
            parts.append(part * config["lora_alpha"] / config["r"] if across else part)
        together[name] = torch.cat(parts, across).to(like.dtype)
    save_file(together, folder / WEIGHTS, metadata={"format": "pt"})
    targets = {target for config in configs for target in config["target_modules"]}
    write_config(folder, r=total, lora_alpha=total, target_modules=targets)


def load_adapted(llm: Path, adapter: Path | None, dtype: Any) -> Any:
    """Load a causal LM; with an adapter, whose weights are then folded in, in memory.

    Its generation_config.json is left alone: how a text is drawn is what the options say.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, GenerationConfig

    model: Any = AutoModelForCausalLM.from_pretrained(
        llm,
        local_files_only=True,
        trust_remote_code=False,
        dtype=dtype,
        generation_config=GenerationConfig(),
    )
    if adapter is None:
        return model
    adapted: Any = PeftModel.from_pretrained(model, str(adapter))
    return adapted.merge_and_unload(safe_merge=True)
