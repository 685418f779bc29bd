"""The program that runs in vLLM's own interpreter: token ids in, token ids out, a JSON line each.

It knows vLLM and the standard library only, so that interpreter needs nothing else of ours, and texts
are tokenised and decoded by the one who asks (`vllm_generator`). The first line it reads is a
`settings` object; each line after that asks for the texts of many prompts:

    {"prompts": [[1, 5, 9], ...], "texts": [[prompt, seed, sampling_temperature], ...],
     "top_p": 0.9, "max_new_tokens": 512, "ends": [2]}

All texts are handed to the engine at once; each is answered, as soon as it is finished, by a line
`{"text": place in "texts", "ids": [...]}`. Settings that cannot work are answered by `{"refused": why}`.
"""

import ctypes
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from vllm import LLM  # pyright: ignore[reportMissingImports]

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM makes room for


def load(settings: dict[str, Any]) -> "LLM":
    """Load the model; without CUDA graphs, and with a small cache of keys and values, on a CPU.

    Args:
        settings: `model`, a folder; `precision`, `quantisation`, `tensor_parallel`,
            `gpu_memory_share`, as in `VLLMOptions`; `devices`, numbers of the GPUs; `max_tokens`,
            the longest prompt and text together; `cpu_cache_bytes`, for keys and values on a CPU;
            `adapter`, a folder or "", and its `adapter_rank`.
    """
    from vllm import LLM  # pyright: ignore[reportMissingImports]
    from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

    on_cpu = current_platform.is_cpu()
    precision, quantisation = settings["precision"], settings["quantisation"]
    if precision == "auto":
        precision = "float32" if on_cpu else "bfloat16"
    # A seeded text whose prompt is computed in pieces fails on a CPU: its generator cannot be set back.
    in_one_piece: dict[str, Any] = {
        "enforce_eager": True,
        "block_size": 32,  # the beginning of a prompt is shared in blocks
        "kv_cache_memory_bytes": settings["cpu_cache_bytes"],
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(4096, settings["max_tokens"]),
    }
    on_gpus = {
        "gpu_memory_utilization": settings["gpu_memory_share"],
        "device_ids": settings["devices"],
    }
    rank = next((rank for rank in LORA_RANKS if rank >= settings["adapter_rank"]), LORA_RANKS[-1])
    with_adapter = {"enable_lora": True, "max_lora_rank": rank} if settings["adapter"] else {}
    return LLM(
        model=settings["model"],
        skip_tokenizer_init=True,
        trust_remote_code=False,
        generation_config="vllm",  # sampling is as the request says, and nothing else
        dtype=precision,
        quantization=None if quantisation == "none" else quantisation,
        tensor_parallel_size=settings["tensor_parallel"],
        max_model_len=settings["max_tokens"],
        enable_prefix_caching=True,
        **with_adapter,
        **(in_one_piece if on_cpu else on_gpus),
    )


def write(llm: "LLM", adapter: str, asked: dict[str, Any], out: TextIO) -> None:
    """Write all texts of one call in one pass of the engine."""
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports]
    from vllm.inputs import tokens_input  # pyright: ignore[reportMissingImports]
    from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]
    from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

    engine = llm.llm_engine
    lora = LoRARequest("adapter", 1, adapter) if adapter else None
    for place, (prompt, seed, temperature) in enumerate(asked["texts"]):
        sampling = SamplingParams(
            temperature=temperature,
            top_p=asked["top_p"],
            seed=seed,
            max_tokens=asked["max_new_tokens"],
            stop_token_ids=asked["ends"],
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        ids = tokens_input(asked["prompts"][prompt])
        engine.add_request(str(place), ids, sampling, lora_request=lora)
    while engine.has_unfinished_requests():
        for output in engine.step():
            text = {"text": int(output.request_id), "ids": list(output.outputs[0].token_ids)}
            out.write(json.dumps(text) + "\n")
        out.flush()


def misfit(device: str) -> str:
    """Say what is wrong if this vLLM was not built for the device that is wanted; else nothing."""
    from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

    on_cpu = current_platform.is_cpu()
    if device == "auto" or on_cpu == (device == "cpu"):
        return ""
    built = "a CPU" if on_cpu else "a GPU"
    return f"device is {device!r}, but the vLLM of {sys.executable} is built for {built}"


def main(parent: int) -> int:
    """Serve the process that started this one, until it closes its end or dies."""
    if sys.platform == "linux":  # die with the parent: PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        return 1
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what vLLM and its children print must not disturb the answers
    asked = os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(
        os.open(os.devnull, os.O_RDONLY), 0
    )  # nor may they read, or ask somebody, what is asked
    settings = json.loads(asked.readline())
    refused = misfit(settings["device"])
    if refused:
        print(json.dumps({"refused": refused}), file=out, flush=True)
        return 1
    llm = load(settings)
    for line in asked:
        write(llm, settings["adapter"], json.loads(line), out)
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
