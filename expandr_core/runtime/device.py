"""Where models run."""

from expandr_core.errors import DataError


def run_device(device: str) -> str:
    """Return where models run: "auto" is a GPU if there is one. Make torch ready for texts there.

    torch would leave attention with a mask to cuDNN, which makes a plan for each new shape of a batch,
    and batches of texts rarely repeat one. torch's own kernels need no plan. (With BERT-base on an H100,
    batches took 47 ms each, and 7 ms where the same one came again: benchmarks/results/h100.md.)

    Args:
        device: "auto", or a device of torch.

    Raises:
        DataError: if it is a GPU, and there is none.

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
