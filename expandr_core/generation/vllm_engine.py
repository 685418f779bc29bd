"""The engine vLLM: offline, in its own interpreter, since vLLM and Prefect cannot share one.

Each copy of the model is a process that runs `vllm_program`; prompts and texts go through pipes as
token ids. So prompts, decoding, shards and store are the same as with every engine, and vLLM's
interpreter needs none of our packages. The processes die with this one, however it ends.
"""

import contextlib
import json
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
from expandr_core.generation.engine import (
    NOT_FINITE,
    Codec,
    Completed,
    Completion,
    LLMSpec,
    Request,
)
from expandr_core.generation.precision import writing_precision
from expandr_core.options.generation import SamplingOptions, VLLMOptions
from expandr_core.runtime.child import terminate_tree
from expandr_core.store.provenance import DEFAULT_VLLM_PYTHON as DEFAULT_PYTHON

CPU_CACHE_BYTES = 2**30  # for keys and values; vLLM on a CPU is for small models
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",  # models are local folders
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # run the engine in the process that we can kill
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # other programs compute on this machine too
    "VLLM_RAISE_ON_LOGIT_NANS": "1",  # otherwise it samples a token all the same
}
REMEDIES = {  # part of vLLM's last words: what to do
    "Free memory on device": "lower llm.vllm.gpu_memory_share, or stop other programs on the GPU",
    "KV cache is needed": "raise llm.vllm.gpu_memory_share, or lower expand.prompt.max_tokens or "
    "max_new_tokens",
    "for the cache blocks": "raise llm.vllm.gpu_memory_share, or llm.vllm.tensor_parallel",
    "out of memory": "lower llm.vllm.gpu_memory_share, or raise llm.vllm.tensor_parallel",
}


@contextlib.contextmanager
def open_vllm(llm: LLMSpec, options: VLLMOptions) -> Iterator["VLLMGenerator"]:
    """Load a model into vLLM, for as long as the context lasts.

    Raises:
        DataError: if the interpreter does not exist.
    """
    interpreter = Path(llm.vllm_python) if llm.vllm_python else DEFAULT_PYTHON
    if not interpreter.is_file():
        raise DataError(
            f"{interpreter}: no such interpreter; `make vllm-env` makes one with vLLM in .venv-vllm, "
            "and EXPANDR_VLLM_PYTHON names another"
        )
    with tempfile.TemporaryDirectory(prefix="expandr-vllm-") as temporary:
        copies: list[_Copy] = []
        try:
            for number in range(options.data_parallel):
                settings = settings_of(llm, options, number)
                copies.append(_Copy(interpreter, settings, Path(temporary, str(number))))
            yield VLLMGenerator(Codec(llm.folder, llm.chat), copies)
        finally:
            for copy in copies:
                terminate_tree(copy.process)


def settings_of(llm: LLMSpec, options: VLLMOptions, copy: int) -> dict[str, Any]:
    """Return the settings with which `vllm_program` loads the copy of a model with this number."""
    first = copy * options.tensor_parallel
    return {
        "model": str(llm.folder),
        "max_tokens": llm.max_tokens,
        "device": llm.device,
        "devices": list(range(first, first + options.tensor_parallel)),
        "precision": options.precision if llm.precision == "auto" else llm.precision,
        "precision_on_cpu": writing_precision(llm.folder, "cpu", llm.precision),
        "quantisation": options.quantisation,
        "tensor_parallel": options.tensor_parallel,
        "gpu_memory_share": options.gpu_memory_share,
        "cpu_cache_bytes": CPU_CACHE_BYTES,
        "adapter": str(llm.adapter) if llm.adapter else "",
        "adapter_rank": read_config(llm.adapter)["r"] if llm.adapter else 0,
    }


class VLLMGenerator:
    """Copies of a causal LM in vLLM; each takes a share of the requests."""

    def __init__(self, codec: Codec, copies: "list[_Copy]"):
        self.codec, self.copies = codec, copies

    @property
    def precision(self) -> str:
        """That of the first copy, once it is loaded."""
        return self.copies[0].precision

    def generate(
        self, requests: Sequence[Request], sampling: SamplingOptions, max_prompt_tokens: int
    ) -> Iterator[Completed]:
        """Submit all texts of all requests at once; yield each request when it is complete."""
        prompts = [p.ids for p in self.codec.prompts(requests, sampling, max_prompt_tokens)]
        answers: queue.SimpleQueue[_Answer] = queue.SimpleQueue()
        texts = [
            self._submit(copy, number, requests, prompts, sampling, answers)
            for number, copy in enumerate(self.copies)
        ]
        completions: dict[tuple[int, int], Completion] = {}
        missing = Counter({index: len(request.seeds) for index, request in enumerate(requests)})
        while missing:
            number, event = answers.get()
            if isinstance(event, Exception):
                raise event
            index, sample = texts[number][event["text"]]
            completions[index, sample] = self.codec.completion(event["ids"])
            missing[index] -= 1
            if not missing[index]:
                del missing[index]
                samples = range(len(requests[index].seeds))
                yield [(index, [completions.pop((index, sample)) for sample in samples])]

    def _submit(
        self,
        copy: "_Copy",
        number: int,
        requests: Sequence[Request],
        prompts: list[list[int]],
        sampling: SamplingOptions,
        answers: "queue.SimpleQueue[_Answer]",
    ) -> list[tuple[int, int]]:
        """Give a copy its share of the requests; return the request and sample of each text."""
        share = range(number, len(requests), len(self.copies))
        texts = [
            (prompt, seed, temperature)
            for prompt, index in enumerate(share)
            for seed, temperature in zip(
                requests[index].seeds, requests[index].sampling_temperatures, strict=True
            )
        ]
        call = {
            "prompts": [prompts[index] for index in share],
            "texts": texts,
            "top_p": sampling.top_p,
            "max_new_tokens": sampling.max_new_tokens,
            "ends": sorted(self.codec.ends),
        }
        threading.Thread(target=copy.answer, args=(number, call, answers), daemon=True).start()
        return [(index, sample) for index in share for sample in range(len(requests[index].seeds))]


_Answer = tuple[int, dict[str, Any] | Exception]  # of the copy with this number


class _Copy:
    """A process that runs `vllm_program`."""

    def __init__(self, python: Path, settings: dict[str, Any], folder: Path):
        folder.mkdir()
        self.precision = ""
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
        self._send(settings)

    def _send(self, line: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is dead, as the next read will show
            self.process.stdin.write(json.dumps(line) + "\n")
            self.process.stdin.flush()

    def answer(
        self, number: int, call: dict[str, Any], answers: "queue.SimpleQueue[_Answer]"
    ) -> None:
        """Put the answer for each text of a call into the queue, or the error that ended it."""
        try:
            for event in self._events(call):
                answers.put((number, event))
        except Exception as error:
            answers.put((number, error))

    def _events(self, call: dict[str, Any]) -> Iterator[dict[str, Any]]:
        self._send(call)
        if not self.precision:
            self.precision = self._read()["precision"]
        for _ in call["texts"]:
            yield self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self._death()
        event = json.loads(line)
        if "refused" in event:
            raise DataError(event["refused"])
        return event

    def _death(self) -> Exception:
        """Return an error that says how the process ended, what to do, and what it wrote last."""
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
