"""DeepSpeed's ZeRO: its configuration, and the weights that it has spread over the processes."""

from typing import Any, Literal

import torch

from expandr_core.errors import DataError

Zero = Literal["none", "2", "3"]


def deepspeed_config(zero: Zero, on_gpu: bool) -> dict[str, Any] | None:
    """Return DeepSpeed's configuration; the trainer fills in what is "auto".

    ZeRO-2 shares the optimiser's state and the gradients, ZeRO-3 the weights too. The optimiser is
    torch's, in every layout.
    """
    if zero == "none":
        return None
    return {
        "zero_optimization": {
            "stage": int(zero),
            "overlap_comm": on_gpu,
            "contiguous_gradients": True,
            "reduce_scatter": True,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": "auto"},
        "gradient_clipping": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
    }


def join_deepspeed() -> None:
    """Make DeepSpeed use the process group that exists already.

    Raises:
        DataError: if it is not installed.
    """
    try:
        import deepspeed.ops
    except ImportError as error:
        raise DataError(
            "dpo.zero needs DeepSpeed: `pip install 'expandr-on-prefect[deepspeed]'` on the machine "
            "that trains, or set dpo.zero to 'none'"
        ) from error

    # on a CPU it would compile an operation for shared memory; torch's own collectives do as well
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(auto_mpi_discovery=False)


def gathered_adapter(model: Any) -> dict[str, torch.Tensor]:
    """Put the adapter's weights together, which ZeRO-3 has spread; all processes call it."""
    import deepspeed

    trained = [weight for weight in model.parameters() if weight.requires_grad]
    with deepspeed.zero.GatheredParameters(trained):
        adapter = {name: value for name, value in model.state_dict().items() if "lora_" in name}
        return {name: value.clone() for name, value in adapter.items()}
