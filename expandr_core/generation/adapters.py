"""LoRA adapters as folders: what they say of themselves, and the sum of two.

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
    (folder / CONFIG).write_text(json.dumps(values, indent=1, allow_nan=False))


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


def linear_layers(model: Any) -> dict[str, int]:
    """Count the layers of a model that can be adapted, by name, with `*` for a layer's number."""
    return dict(Counter(_without_numbers(name) for name in _adaptable(model)))


def _adaptable(model: Any) -> list[str]:
    """Return the names of linear layers, but for those whose weights something else uses as well.

    These are a head that is the embedding too, and Mamba's last layer, whose kernels read the weight.
    In a mixture of experts that are no layers, PEFT takes names like theirs for them.
    """
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    modules, table = dict(model.named_modules()), model.get_input_embeddings().weight
    mixture = any(name.endswith(".experts") and each._parameters for name, each in modules.items())
    found = []
    for name, module in modules.items():
        parent, _, last = name.rpartition(".")
        of_mamba = last == "out_proj" and {"A_log", "D"} <= modules[parent]._parameters.keys()
        of_experts = mixture and last in _EXPERTS
        named = type(module).__name__.endswith(("Linear", "Conv1D", "bit"))  # no router
        if isinstance(module, Linear | Conv1D) and named and not of_mamba and not of_experts:
            found.append(name)
    return [name for name in found if modules[name].weight is not table]


def layers_to_adapt(model: Any, targets: Sequence[str]) -> list[str]:
    """Return what to tell PEFT, for names of layers or for all linear layers but the head.

    Raises:
        DataError: if a name is not that of a layer.
    """
    check_targets(linear_layers(model), targets)
    if ALL_LINEAR not in targets:
        return list(targets)
    head, modules = model.get_output_embeddings(), dict(model.named_modules())
    wanted = [name for name in _adaptable(model) if modules[name] is not head]
    ends = {name.rpartition(".")[2] for name in wanted}
    found = [name for name in modules if name.rpartition(".")[2] in ends]
    return sorted(ends) if found == wanted else wanted


def check_targets(layers: Iterable[str], targets: Iterable[str]) -> None:
    """Check that each name of layers to adapt is one; PEFT ignores a wrong name beside a right one.

    Args:
        layers: names, as `linear_layers` gives them.
        targets: the option.

    Raises:
        DataError: if one is not, with the names that there are.
    """
    ends = [f".{name}" for name in layers]
    wrong = [
        target
        for target in targets
        if target != ALL_LINEAR
        and not any(e.endswith("." + _without_numbers(target)) for e in ends)
    ]
    if wrong or not ends:
        names = sorted({end.rpartition(".")[2] for end in ends})
        raise DataError(
            f"dpo.lora.targets: the language model has no linear layer {', '.join(map(repr, wrong))}; "
            f"it has {', '.join(names) or 'none'}; name some of these, or {ALL_LINEAR!r}"
        )


def _without_numbers(name: str) -> str:
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)
