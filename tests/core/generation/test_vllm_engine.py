"""The engine vLLM: the texts of transformers, one pass for all, and no process left behind.

Most of these tests need vLLM's interpreter (`make vllm-env`; EXPANDR_VLLM_PYTHON names another) and are
skipped without it; `make test-vllm` has it made and runs them.
"""

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest
from ports import kept_port
from test_expand import QUERIES, put_queries, rows_of, specified
from tiny_models import random_adapter, save_llm

from expandr_core.errors import DataError
from expandr_core.generation import vllm_engine
from expandr_core.generation.endpoint_engine import EndpointGenerator
from expandr_core.generation.engine import Completion, Generator, LLMSpec, Request, open_engine
from expandr_core.generation.transformers_engine import TransformersGenerator
from expandr_core.generation.vllm_engine import DEFAULT_PYTHON, VLLMGenerator, open_vllm
from expandr_core.options.generation import EndpointOptions, SamplingOptions, VLLMOptions
from expandr_core.runtime.child import terminate_tree
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.runner import run_stage
from expandr_core.store.artifacts import StageSpec
from expandr_core.store.store import Store

PYTHON = Path(os.environ.get("EXPANDR_VLLM_PYTHON") or DEFAULT_PYTHON)
needs_vllm = pytest.mark.skipif(not PYTHON.is_file(), reason="no vLLM; `make vllm-env` installs it")
SAMPLING = SamplingOptions(top_p=0.95, max_new_tokens=40)
MAX_PROMPT_TOKENS = 160
MAX_TOKENS = MAX_PROMPT_TOKENS + SAMPLING.max_new_tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_llm(tmp_path_factory.mktemp("llm") / "model", seed=2, heads=1)


def llm_of(folder: Path, **changes) -> LLMSpec:
    return replace(
        LLMSpec(folder, "cpu", max_tokens=MAX_TOKENS, vllm_python=str(PYTHON)), **changes
    )


@pytest.fixture(scope="module")
def engine(folder) -> Iterator[VLLMGenerator]:
    with open_vllm(llm_of(folder), VLLMOptions()) as generator:
        yield generator


def generated(engine: Generator, requests: list[Request], **options) -> dict[int, list[Completion]]:
    sampling = SAMPLING.model_copy(update=options)
    batches = list(engine.generate(requests, sampling, MAX_PROMPT_TOKENS))
    found = {index: texts for batch in batches for index, texts in batch}
    assert len(found) == sum(map(len, batches)) == len(requests)
    return found


def asked(number: int, temperatures: tuple[float, ...]) -> Request:
    query = f"why is thing {number} grey? " * (number % 4 + 1)
    seeds = tuple(2**62 + 100 * number + sample for sample in range(len(temperatures)))
    return Request("q2d", query, "", seeds, temperatures)


def equal_share(one: dict[int, list[Completion]], other: dict[int, list[Completion]]) -> float:
    texts = [(a, b) for n in one for a, b in zip(one[n], other[n], strict=True)]
    return sum(a == b for a, b in texts) / len(texts)


# Texts


@needs_vllm
def test_greedy_texts_are_those_of_transformers(folder, engine):
    """Text, number of tokens and finish reason; what may differ is a near-tie, by rounding."""
    requests = [asked(number, (0.0,)) for number in range(64)]
    expected = generated(TransformersGenerator(folder, "cpu"), requests)
    assert len({texts[0].text for texts in expected.values()}) > 50
    assert equal_share(generated(engine, requests), expected) >= 0.99


@needs_vllm
def test_a_sampled_text_depends_on_its_seed_and_not_on_its_batch(engine):
    requests = [asked(number, (0.8, 1.0, 1.2, 0.0)) for number in range(16)]
    expected = generated(engine, requests)
    assert len({text.text for texts in expected.values() for text in texts}) > 55
    order = random.Random(0).sample(range(16), 16)
    shuffled = generated(engine, [requests[number] for number in order])
    assert equal_share({n: shuffled[place] for place, n in enumerate(order)}, expected) >= 0.98
    alone = generated(engine, [requests[5]])
    assert alone[0] == expected[5]
    greedy = generated(engine, [asked(number, (0.0,)) for number in range(16)])
    assert {n: texts[3:] for n, texts in expected.items()} == greedy


@needs_vllm
def test_tokens_are_sampled_with_the_probabilities_of_the_model(folder, engine):
    """The first token of many seeds, against the softmax of the model's logits, by chi-square."""
    import numpy as np
    import torch
    from scipy.stats import chisquare

    reference = TransformersGenerator(folder, "cpu")
    rows, temperature = 4000, 0.3
    request = Request("q2d", "why?", "", tuple(range(rows)), (temperature,) * rows)
    [prompt] = reference.codec.prompts([request], SAMPLING, MAX_PROMPT_TOKENS)
    with torch.inference_mode():
        logits = reference.model(torch.tensor([prompt.ids])).logits[0, -1].double()
    probabilities = torch.softmax(logits / temperature, 0).numpy()
    texts = generated(engine, [request], top_p=1.0, max_new_tokens=1)[0]
    tokenizer = reference.codec.tokenizer
    named = [tokenizer.decode([token], skip_special_tokens=True) for token in range(len(logits))]
    drawn = np.array([sum(text.text == name for text in texts) for name in named])
    likely = np.array(
        [
            p * rows >= 10 and named.count(name) == 1
            for p, name in zip(probabilities, named, strict=True)
        ]
    )
    expected = np.append(probabilities[likely], probabilities[~likely].sum()) * rows
    observed = np.append(drawn[likely], rows - drawn[likely].sum())
    assert likely.sum() > 5
    assert chisquare(observed, expected).pvalue > 0.001


@needs_vllm
def test_a_text_is_finished_or_cut(engine):
    texts = generated(engine, [asked(0, (1.0,) * 200)], top_p=1.0)[0]
    stopped = [text for text in texts if text.finish_reason == "stop"]
    cut = [text for text in texts if text.finish_reason == "length"]
    assert stopped and cut
    assert all(text.tokens < 40 for text in stopped)
    assert all(text.tokens == 40 for text in cut)
    assert not any("<|eos|>" in text.text for text in texts)


@needs_vllm
def test_nothing_in_vllm_can_read_the_calls(engine):
    for copy in engine.copies:
        assert os.readlink(f"/proc/{copy.process.pid}/fd/0") == os.devnull


@needs_vllm
def test_copies_of_the_model_share_the_requests(folder, engine):
    requests = [asked(number, (0.0, 0.8)) for number in range(9)]
    with open_vllm(llm_of(folder), VLLMOptions(data_parallel=2)) as copies:
        assert equal_share(generated(copies, requests), generated(engine, requests)) >= 0.9


@needs_vllm
def test_greedy_texts_with_an_adapter_are_those_of_transformers(folder, tmp_path):
    adapter = random_adapter(folder, tmp_path / "adapter", 1, 12, ["q_proj", "v_proj", "up_proj"])
    requests = [asked(number, (0.0,)) for number in range(64)]
    expected = generated(TransformersGenerator(folder, "cpu", adapter), requests)
    without = generated(TransformersGenerator(folder, "cpu"), requests)
    assert equal_share(expected, without) < 0.1
    with open_engine(llm_of(folder, adapter=adapter), VLLMOptions()) as engine:
        assert equal_share(generated(engine, requests), expected) >= 0.99


# The server


@pytest.fixture
def port() -> Iterator[int]:
    with kept_port() as port:
        yield port


@pytest.fixture
def served(folder, port, tmp_path, monkeypatch) -> Iterator[EndpointOptions]:
    """Serve the model by vLLM's own OpenAI server, with a key."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    command = [str(PYTHON), "-I", "-m", "vllm.entrypoints.openai.api_server"]
    command += [
        f"--model={folder}",
        "--host=127.0.0.1",
        f"--port={port}",
        "--api-key=sk-test",
        "--enforce-eager",
    ]
    command += ["--served-model-name=llama", "--dtype=float32", "--max-model-len=512"]
    command += ["--kv-cache-memory-bytes=100000000", "--no-enable-chunked-prefill"]
    environment = os.environ | vllm_engine.ENVIRONMENT | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 600
        while True:
            assert server.poll() is None and time.monotonic() < deadline, (
                tmp_path / "log"
            ).read_text()[-3000:]
            with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{port}/health"):
                break
            time.sleep(0.2)
        yield EndpointOptions(url=f"http://127.0.0.1:{port}/v1", model="llama")
    finally:
        terminate_tree(server)


@needs_vllm
def test_vllm_s_server_writes_the_texts_of_transformers(folder, served):
    """The server keeps back the bytes of half a character at the end of a text."""
    requests = [asked(number, (0.0, 0.0)) for number in range(32)]
    expected = whole_characters(generated(TransformersGenerator(folder, "cpu"), requests))
    for api in ("completions", "chat"):
        options = served.model_copy(update={"api": api})
        found = whole_characters(generated(EndpointGenerator(folder, options), requests))
        assert equal_share(found, expected) >= 0.99


def whole_characters(found: dict[int, list[Completion]]) -> dict[int, list[Completion]]:
    return {
        index: [replace(text, text=text.text.rstrip("\ufffd")) for text in texts]
        for index, texts in found.items()
    }


# Errors


def test_without_vllm_the_error_says_how_to_get_it(folder, tmp_path):
    nowhere = str(tmp_path / "bin" / "python")
    with (
        pytest.raises(DataError, match=f"{nowhere}: no such interpreter.*make vllm-env"),
        open_engine(llm_of(folder, vllm_python=nowhere), VLLMOptions()),
    ):
        pass


@needs_vllm
def test_a_vllm_for_another_device_is_refused(folder):
    with (
        open_engine(llm_of(folder, device="cuda"), VLLMOptions()) as engine,
        pytest.raises(DataError, match=r"device is 'cuda', but the vLLM of .* is built for a CPU"),
    ):
        generated(engine, [asked(0, (0.0,))])


@needs_vllm
def test_too_little_memory_is_an_error_that_names_the_option(folder, monkeypatch):
    monkeypatch.setattr(vllm_engine, "CPU_CACHE_BYTES", 2**12)
    with (
        open_engine(llm_of(folder), VLLMOptions()) as engine,
        pytest.raises(RuntimeError, match=r"vLLM ended with 1\n.*llm\.vllm\.gpu_memory_share"),
    ):
        generated(engine, [asked(0, (0.0,))])


# The stage, and kills


def stage_spec(store: Store, folder: Path, **options) -> StageSpec:
    queries = put_queries(store, QUERIES)
    spec = specified(store, folder, queries, engine="vllm", settings=VLLMOptions(), **options)
    return spec.model_copy(update={"runtime": {**spec.runtime, "vllm_python": str(PYTHON)}})


def programs(parent: int) -> list[psutil.Process]:
    """Find the processes of vLLM below another one."""
    below = psutil.Process(parent).children(recursive=True)
    return [each for each in below if is_alive(each) and "vllm_program" in str(each.cmdline())]


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@needs_vllm
def test_a_killed_engine_is_an_error_and_costs_one_shard_at_most(folder, tmp_path):
    store = Store(str(tmp_path / "store"))
    spec = stage_spec(store, folder)
    others = programs(os.getpid())  # of other tests

    def own() -> list[psutil.Process]:
        return [each for each in programs(os.getpid()) if each not in others]

    def kill(done: int, total: int, unit: str) -> None:
        if store.keys("expand_shard"):
            for process in own():
                process.kill()

    with pytest.raises(RuntimeError, match="vLLM was killed by SIGKILL"):
        run_stage(spec, store, kill)
    assert not own()
    kept = set(store.keys("expand_shard"))
    assert kept

    resumed = run_stage(spec, store, no_progress)
    assert kept < {part.key for part in store.shards(resumed)}
    assert not own()
    whole = Store(str(tmp_path / "whole"))
    expected = run_stage(stage_spec(whole, folder), whole, no_progress)
    assert rows_of(store, resumed) == rows_of(whole, expected)


@needs_vllm
def test_a_killed_stage_leaves_no_process_behind(folder, tmp_path):
    store = Store(str(tmp_path / "store"))
    path = tmp_path / "spec.json"
    path.write_text(stage_spec(store, folder).model_dump_json())
    command = [sys.executable, "-m", "expandr_core.runtime.runner", str(path), store.url]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not store.keys("expand_shard"):
        assert child.poll() is None and time.monotonic() < deadline, "no shard came"
        time.sleep(0.01)
    below = psutil.Process(child.pid).children(recursive=True)
    assert programs(child.pid)
    child.kill()
    child.wait()
    psutil.wait_procs(below, 10)
    assert not [each for each in below if is_alive(each)]
