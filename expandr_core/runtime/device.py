"""The device that models run on."""

from expandr_core.errors import DataError


def run_device(device: str) -> str:
    """Return the device to run on ("auto" means a GPU if there is one), and set torch up for it.

    torch would delegate masked attention to cuDNN, which plans for every new batch shape, and batches of
    texts rarely repeat one; torch's own kernels need no plan. (BERT-base on an H100 took 47 ms per new
    batch and 7 ms per repeated one: benchmarks/results/h100.md.)

    Args:
        device: "auto", or a torch device.

    Raises:
        DataError: if it is a GPU and there is none.

    >>> run_device("cpu")
    'cpu'
    """
    if device == "cpu":
        return device
    import torch

    if not torch.cuda.is_available():
        if device == "auto":
            return "cpu"
        raise DataError(
            f"the device is {device!r}, but torch finds no GPU; set it to 'auto' or 'cpu'"
        )
    torch.backends.cuda.enable_cudnn_sdp(False)
    return "cuda" if device == "auto" else device
