"""The engine vLLM: offline, in processes of its own interpreter (vLLM and Prefect cannot share one).

A process for each copy of the model runs `vllm_program`; prompts go there and texts come back as token
ids, through pipes. So the prompts, the decoding, the shards and the store are those of every engine,
and vLLM's interpreter needs nothing of ours. The processes die with this one, whatever ends it.
"""

import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from expandr_core.errors import DataError
from expandr_core.generation import vllm_program
from expandr_core.generation.adapters import read_config
from expandr_core.generation.transformers_engine import NOT_FINITE, Codec, Completion, Request
from expandr_core.options.base import Device
from expandr_core.options.generation import ChatOptions, SamplingOptions, VLLMOptions
from expandr_core.runtime.child import terminate_tree

log = logging.getLogger(__name__)
ROOT = Path(__file__).parents[2]
DEFAULT_PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
CPU_CACHE_BYTES = 2**30  # for keys and values; vLLM on a CPU is for small models
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",  # models are local folders
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in the process itself, which can be killed
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # others compute on this machine too
    "VLLM_RAISE_ON_LOGIT_NANS": "1",  # it would draw some token all the same
}
REMEDIES = {  # what vLLM writes when it ends, and what to do
    "Free memory on device": "lower llm.vllm.gpu_memory_share, or end what else uses the GPU",
    "KV cache is needed": "raise llm.vllm.gpu_memory_share, or lower expand.max_prompt_tokens or "
    "max_new_tokens",
    "for the cache blocks": "raise llm.vllm.gpu_memory_share, or llm.vllm.tensor_parallel",
    "out of memory": "lower llm.vllm.gpu_memory_share, or raise llm.vllm.tensor_parallel",
}


@contextlib.contextmanager
def open_vllm(
    folder: Path,
    options: VLLMOptions,
    max_tokens: int,
    device: Device,
    python: str = "",
    adapter: Path | None = None,
    chat: ChatOptions | None = None,
) -> Iterator["VLLMGenerator"]:
    """Load a model into vLLM, for as long as the context lasts.

    Args:
        folder: the model.
        options: how vLLM runs.
        max_tokens: longest prompt and text together.
        device: where; it must be what that vLLM was built for.
        python: the interpreter that has vLLM; the project's `.venv-vllm` by default.
        adapter: folder of a LoRA adapter of the model, which stays apart from its weights.
        chat: how the chat template is rendered.

    Raises:
        DataError: if there is no such interpreter.
    """
    interpreter = Path(python) if python else DEFAULT_PYTHON
    if not interpreter.is_file():
        raise DataError(
            f"{interpreter}: no such interpreter; `make vllm-env` makes one with vLLM in .venv-vllm, "
            "and EXPANDR_VLLM_PYTHON names another"
        )
    with tempfile.TemporaryDirectory(prefix="expandr-vllm-") as temporary:
        copies: list[_Copy] = []
        try:
            for number in range(options.data_parallel):
                settings = settings_of(folder, options, max_tokens, device, number, adapter)
                copies.append(_Copy(interpreter, settings, Path(temporary, str(number))))
            yield VLLMGenerator(Codec(folder, chat), copies)
        finally:
            for copy in copies:
                terminate_tree(copy.process)


def settings_of(
    folder: Path,
    options: VLLMOptions,
    max_tokens: int,
    device: Device,
    copy: int,
    adapter: Path | None = None,
) -> dict[str, Any]:
    """Say to `vllm_program` what one copy of the model is; for the arguments see `open_vllm`."""
    first = copy * options.tensor_parallel
    return {
        "model": str(folder),
        "max_tokens": max_tokens,
        "device": device,
        "devices": list(range(first, first + options.tensor_parallel)),
        "precision": options.precision,
        "quantisation": options.quantisation,
        "tensor_parallel": options.tensor_parallel,
        "gpu_memory_share": options.gpu_memory_share,
        "cpu_cache_bytes": CPU_CACHE_BYTES,
        "adapter": str(adapter) if adapter else "",
        "adapter_rank": read_config(adapter)["r"] if adapter else 0,
    }


class VLLMGenerator:
    """Copies of a causal LM in vLLM, which share the prompts."""

    def __init__(self, codec: Codec, copies: "list[_Copy]"):
        self.codec, self.copies = codec, copies

    def generate(
        self, requests: Sequence[Request], sampling: SamplingOptions, max_prompt_tokens: int
    ) -> Iterator[list[tuple[int, list[Completion]]]]:
        """Hand all texts of all requests over at once; yield each request when it is complete."""
        prompts = self.codec.prompts(requests, sampling, max_prompt_tokens)
        answers: queue.SimpleQueue[_Answer] = queue.SimpleQueue()
        places = [
            self._ask(copy, number, requests, prompts, sampling, answers)
            for number, copy in enumerate(self.copies)
        ]
        found: dict[tuple[int, int], Completion] = {}
        missing = Counter({index: len(request.seeds) for index, request in enumerate(requests)})
        while missing:
            number, event = answers.get()
            if isinstance(event, Exception):
                raise event
            index, sample = places[number][event["text"]]
            found[index, sample] = self.codec.completion(event["ids"])
            missing[index] -= 1
            if not missing[index]:
                del missing[index]
                samples = range(len(requests[index].seeds))
                yield [(index, [found.pop((index, sample)) for sample in samples])]

    def _ask(
        self,
        copy: "_Copy",
        number: int,
        requests: Sequence[Request],
        prompts: list[list[int]],
        sampling: SamplingOptions,
        answers: "queue.SimpleQueue[_Answer]",
    ) -> list[tuple[int, int]]:
        """Ask a copy for its share of the requests; return the request and sample of each text."""
        own = range(number, len(requests), len(self.copies))
        texts = [
            (place, seed, temperature)
            for place, index in enumerate(own)
            for seed, temperature in zip(
                requests[index].seeds, requests[index].sampling_temperatures, strict=True
            )
        ]
        call = {
            "prompts": [prompts[index] for index in own],
            "texts": texts,
            "top_p": sampling.top_p,
            "max_new_tokens": sampling.max_new_tokens,
            "ends": sorted(self.codec.ends),
        }
        threading.Thread(target=copy.answer, args=(number, call, answers), daemon=True).start()
        return [(index, sample) for index in own for sample in range(len(requests[index].seeds))]


_Answer = tuple[int, dict[str, Any] | Exception]


class _Copy:
    """A process that runs `vllm_program`."""

    def __init__(self, python: Path, settings: dict[str, Any], folder: Path):
        folder.mkdir()
        self._errors = folder / "stderr"
        command = ["env", *(f"{name}={value}" for name, value in ENVIRONMENT.items())]
        command += [f"TMPDIR={folder}", str(python), "-I", vllm_program.__file__, str(os.getpid())]
        with self._errors.open("wb") as stderr:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )
        self._say(settings)

    def _say(self, line: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is dead; reading tells
            self.process.stdin.write(json.dumps(line) + "\n")
            self.process.stdin.flush()

    def answer(
        self, number: int, call: dict[str, Any], answers: "queue.SimpleQueue[_Answer]"
    ) -> None:
        """Put the answer for each text of a call into the queue, or what went wrong."""
        try:
            for event in self._events(call):
                answers.put((number, event))
        except Exception as error:
            answers.put((number, error))

    def _events(self, call: dict[str, Any]) -> Iterator[dict[str, Any]]:
        assert self.process.stdout is not None
        self._say(call)
        for _ in call["texts"]:
            line = self.process.stdout.readline()
            if not line:
                raise self._end()
            event = json.loads(line)
            if "refused" in event:
                raise DataError(event["refused"])
            yield event

    def _end(self) -> Exception:
        """Say how the process ended, what to do about it, and what it wrote last."""
        status = self.process.wait()
        how = (
            f"was killed by {signal.Signals(-status).name}"
            if status < 0
            else f"ended with {status}"
        )
        last = self._errors.read_text(errors="replace").strip()[-3000:]
        if "NaNs detected in logits" in last:
            return DataError(NOT_FINITE)
        remedies = [remedy for sign, remedy in REMEDIES.items() if sign in last]
        return RuntimeError("\n".join([f"vLLM {how}", *remedies, last]))
