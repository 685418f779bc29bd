"""LoRA adapters as folders: their configuration, their sum, and the layers that they adapt.

An adapter adds `scale * B @ A` to the weight of each adapted layer, with `scale` = alpha / rank. The
sum of two is an adapter again, whose rank is the sum of theirs:
`s1 * B1 @ A1 + s2 * B2 @ A2 = [s1 * B1, s2 * B2] @ [A1; A2]`.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from expandr_core.errors import DataError
from expandr_core.options.training import ALL_LINEAR
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_EXPERTS = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}


def is_adapter(llm: Artifact) -> bool:
    """Tell whether an artifact is an adapter, which DPO trained or which was imported."""
    return CONFIG in llm.files


def language_model(store: Store, llm: Artifact) -> dict[str, Artifact]:
    """Return the artifacts of a language model by role: "llm" and, if it is separate, "adapter"."""
    if not is_adapter(llm):
        return {"llm": llm}
    return {"llm": Artifact(**store.manifest(llm.key)["inputs"]["llm"]), "adapter": llm}


def read_config(folder: Path) -> dict[str, Any]:
    """Read the configuration of an adapter."""
    return json.loads((folder / CONFIG).read_text())


def write_config(folder: Path, **changes: Any) -> None:
    """Change the configuration of an adapter, or write one.

    PEFT writes the adapted layers as a set, in random order; here they are sorted.
    """
    path = folder / CONFIG
    values = (read_config(folder) if path.is_file() else {}) | changes
    values["target_modules"] = sorted(values["target_modules"])
    path.write_text(json.dumps(values, indent=1, allow_nan=False))


def add(other: Path, folder: Path) -> None:
    """Add another adapter of the same model, perhaps of other layers, to the adapter in a folder.

    The sum is in float32: one that was published may be in bfloat16, which would round what is added.
    """
    import torch
    from safetensors.torch import load_file, save_file

    paths = (other, folder)
    configs = [read_config(path) for path in paths]
    weights = [
        {name: matrix.float() for name, matrix in load_file(path / WEIGHTS).items()}
        for path in paths
    ]
    rank = sum(config["r"] for config in configs)
    stacked = {}
    for name, like in sorted((weights[0] | weights[1]).items()):
        axis = 0 if "lora_A" in name else 1  # of the rank: A is (rank, in), B is (out, rank)
        blocks = []
        for matrices, config in zip(weights, configs, strict=True):
            shape = list(like.shape)
            shape[axis] = config["r"]
            block = matrices.get(name, like.new_zeros(shape))
            blocks.append(block * config["lora_alpha"] / config["r"] if axis else block)
        stacked[name] = torch.cat(blocks, axis).to(like.dtype)
    save_file(stacked, folder / WEIGHTS, metadata={"format": "pt"})
    targets = {target for config in configs for target in config["target_modules"]}
    write_config(folder, r=rank, lora_alpha=rank, target_modules=targets)


def load_adapted(llm: Path, adapter: Path | None, dtype: Any) -> Any:
    """Load a causal LM, and merge the adapter into it in memory if there is one.

    The model's generation_config.json is ignored, as only the options say how to sample.
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


def linear_layers(model: Any) -> dict[str, int]:
    """Count the layers that an adapter can adapt, by name, with `*` for a layer's number."""
    return dict(Counter(without_numbers(name) for name in _adaptable(model)))


def _adaptable(model: Any) -> list[str]:
    """Return the names of linear layers whose weights nothing else uses.

    Excluded are a head that is tied to the embedding, and Mamba's last layer, whose kernels read the
    weight. In a mixture whose experts are bare parameters, PEFT takes layers with the names of experts
    for them; these are excluded too.
    """
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    modules, table = dict(model.named_modules()), model.get_input_embeddings().weight
    mixture = any(name.endswith(".experts") and each._parameters for name, each in modules.items())
    names = []
    for name, module in modules.items():
        parent, _, last = name.rpartition(".")
        of_mamba = last == "out_proj" and {"A_log", "D"} <= modules[parent]._parameters.keys()
        of_experts = mixture and last in _EXPERTS
        named = type(module).__name__.endswith(("Linear", "Conv1D", "bit"))  # no router
        if isinstance(module, Linear | Conv1D) and named and not of_mamba and not of_experts:
            names.append(name)
    return [name for name in names if modules[name].weight is not table]


def layers_to_adapt(model: Any, targets: Sequence[str]) -> list[str]:
    """Return PEFT's `target_modules` for the names of layers, or for all linear layers but the head.

    Raises:
        DataError: if a name is not the name of a layer.
    """
    check_targets(linear_layers(model), targets)
    if ALL_LINEAR not in targets:
        return list(targets)
    head, modules = model.get_output_embeddings(), dict(model.named_modules())
    names = [name for name in _adaptable(model) if modules[name] is not head]
    ends = {name.rpartition(".")[2] for name in names}
    matched = [name for name in modules if name.rpartition(".")[2] in ends]
    return sorted(ends) if matched == names else names


def check_targets(layers: Iterable[str], targets: Iterable[str]) -> None:
    """Check the names of layers to adapt, since PEFT ignores a wrong name beside a right one.

    Args:
        layers: names as in `linear_layers`.
        targets: the option `dpo.lora.targets`.

    Raises:
        DataError: if a name matches no layer, with the names of the layers.
    """
    ends = [f".{name}" for name in layers]
    wrong = [
        target
        for target in targets
        if target != ALL_LINEAR and not any(e.endswith("." + without_numbers(target)) for e in ends)
    ]
    if wrong or not ends:
        names = sorted({end.rpartition(".")[2] for end in ends})
        raise DataError(
            f"dpo.lora.targets: the language model has no linear layer {', '.join(map(repr, wrong))}; "
            f"it has {', '.join(names) or 'none'}; name some of these, or {ALL_LINEAR!r}"
        )


def without_numbers(name: str) -> str:
    """Write `*` for the numbers in the name of a layer."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)
