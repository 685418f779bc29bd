"""The program that runs in vLLM's interpreter: token ids in, token ids out, as JSON lines.

It imports vLLM and the standard library only; its caller, `vllm_engine`, encodes prompts and decodes
texts. The first line of input is a `settings` object; each further line is a call for the texts of
many prompts:

    {"prompts": [[1, 5, 9], ...], "texts": [[prompt, seed, sampling_temperature], ...],
     "top_p": 0.9, "max_new_tokens": 512, "ends": [2]}

When the model is loaded, a line `{"precision": ...}` says in which it computes. The engine gets all
texts at once. As soon as a text is finished, its answer is a line
`{"text": position in "texts", "ids": [...]}`. The answer to impossible settings is `{"refused": why}`.
"""

import ctypes
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from vllm import LLM

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the maximum ranks that vLLM accepts


def load(settings: dict[str, Any]) -> "LLM":
    """Load the model; on a CPU without CUDA graphs and with a small key-value cache.

    Args:
        settings: `model`, a folder; `precision`, `quantisation`, `tensor_parallel`,
            `gpu_memory_share`, as in `VLLMOptions`; `precision_on_cpu`, what "auto" means there;
            `devices`, numbers of the GPUs; `max_tokens`, the longest prompt and text together;
            `cpu_cache_bytes`, size of the key-value cache on a CPU; `adapter`, a folder or "", and
            its `adapter_rank`.
    """
    from vllm import LLM
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    precision, quantisation = settings["precision"], settings["quantisation"]
    if precision == "auto":
        precision = settings["precision_on_cpu"] if on_cpu else "bfloat16"
    # Prefill each prompt in one piece: with chunks a seeded text fails on a CPU, whose random
    # generator cannot be rewound.
    cpu_only: dict[str, Any] = {
        "enforce_eager": True,
        "block_size": 32,  # prompts share their prefixes block by block
        "kv_cache_memory_bytes": settings["cpu_cache_bytes"],
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(4096, settings["max_tokens"]),
    }
    gpu_only = {
        "gpu_memory_utilization": settings["gpu_memory_share"],
        "device_ids": settings["devices"],
    }
    rank = next((rank for rank in LORA_RANKS if rank >= settings["adapter_rank"]), LORA_RANKS[-1])
    lora = {"enable_lora": True, "max_lora_rank": rank} if settings["adapter"] else {}
    return LLM(
        model=settings["model"],
        skip_tokenizer_init=True,
        trust_remote_code=False,
        generation_config="vllm",  # take no sampling parameters from the model's folder
        dtype=precision,
        quantization=None if quantisation == "none" else quantisation,
        tensor_parallel_size=settings["tensor_parallel"],
        max_model_len=settings["max_tokens"],
        enable_prefix_caching=True,
        **lora,
        **(cpu_only if on_cpu else gpu_only),
    )


def write(llm: "LLM", adapter: str, call: dict[str, Any], out: TextIO) -> None:
    """Write all texts of one call in one pass of the engine."""
    from vllm import SamplingParams
    from vllm.inputs import tokens_input
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import RequestOutputKind

    engine = llm.llm_engine
    lora = LoRARequest("adapter", 1, adapter) if adapter else None
    for text, (prompt, seed, temperature) in enumerate(call["texts"]):
        sampling = SamplingParams(
            temperature=temperature,
            top_p=call["top_p"],
            seed=seed,
            max_tokens=call["max_new_tokens"],
            stop_token_ids=call["ends"],
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        ids = tokens_input(call["prompts"][prompt])
        engine.add_request(str(text), ids, sampling, lora_request=lora)
    while engine.has_unfinished_requests():
        for output in engine.step():
            answer = {"text": int(output.request_id), "ids": list(output.outputs[0].token_ids)}
            out.write(json.dumps(answer) + "\n")
        out.flush()


def misfit(device: str) -> str:
    """Return what is wrong if this vLLM was not built for the device, or ""."""
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    if device == "auto" or on_cpu == (device == "cpu"):
        return ""
    built = "a CPU" if on_cpu else "a GPU"
    return f"device is {device!r}, but the vLLM of {sys.executable} is built for {built}"


def main(parent: int) -> int:
    """Serve the parent process until it closes its end of the pipe or dies."""
    if sys.platform == "linux":  # PR_SET_PDEATHSIG: die with the parent
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        return 1
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # vLLM and its children print to standard error, not among the answers,
    calls = os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # and cannot read the calls
    settings = json.loads(calls.readline())
    refused = misfit(settings["device"])
    if refused:
        print(json.dumps({"refused": refused}), file=out, flush=True)
        return 1
    llm = load(settings)
    precision = str(llm.model_config.dtype).removeprefix("torch.")
    print(json.dumps({"precision": precision}), file=out, flush=True)
    for line in calls:
        write(llm, settings["adapter"], json.loads(line), out)
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
