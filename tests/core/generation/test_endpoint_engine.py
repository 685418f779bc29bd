"""The engine endpoint, against a small server on the loopback that is busy and failing at first."""

import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from openai_server import Server, running
from test_expand import QUERIES, by_id, put_queries, rows_of, specified
from tiny_models import BOS, EOS

from expandr_core.errors import DataError
from expandr_core.generation.endpoint_engine import EndpointGenerator
from expandr_core.generation.engine import Completion, Request
from expandr_core.generation.prompts import fit_prompt, render_prompt
from expandr_core.options.generation import EndpointOptions, LLMOptions, SamplingOptions
from expandr_core.options.loop import JointLoopOptions
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.runner import run_stage
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store

KEY = "sk-not-to-be-seen-anywhere"
OPENAI = {"model": "llama", "temperature": 0.8, "top_p": 0.95, "max_tokens": 24}
SAMPLING = SamplingOptions(top_p=0.95, max_new_tokens=24)


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with running() as server:
        yield server


def options(server: Server, **changes) -> EndpointOptions:
    return EndpointOptions(**({"url": server.url, "model": "llama", "concurrency": 4} | changes))


def requests(texts: int) -> list[Request]:
    return [
        Request(
            "q2d",
            f"why is thing {n} grey?",
            "",
            tuple(range(10 * n, 10 * n + texts)),
            (0.8,) * texts,
        )
        for n in range(8)
    ]


def generated(llm_folder, options, asked: list[Request]) -> dict[int, list[Completion]]:
    batches = EndpointGenerator(llm_folder, options).generate(asked, SAMPLING, 160)
    return {index: texts for batch in batches for index, texts in batch}


def test_every_text_is_asked_for_with_its_own_seed_and_the_prompt_s_ids(server, llm_folder):
    found = generated(llm_folder, options(server), requests(3))
    assert found == {
        n: [
            Completion(
                f"text of seed {seed} at 0.8", "length" if seed % 2 else "stop", 8 - (seed % 2 == 0)
            )
            for seed in range(10 * n, 10 * n + 3)
        ]
        for n in range(8)
    }
    tokenizer = EndpointGenerator(llm_folder, options(server)).codec.tokenizer
    assert len(server.asked) == 24
    for path, authorization, body, _ in server.asked:
        assert (path, authorization) == ("/v1/completions", f"Bearer {KEY}")
        query = f"why is thing {body['seed'] // 10} grey?"
        assert body.pop("prompt") == fit_prompt(tokenizer, "q2d", query, "", 160).ids
        assert body.pop("seed") in range(80)
        assert body == OPENAI | {
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "repeat_penalty": 1.0,
            "min_tokens": 0,
            "stop_token_ids": [EOS],
        }


def test_a_server_with_other_fields_gets_the_same_settings_in_its_own(server, llm_folder):
    """As `transformers serve`, which refuses fields it does not know."""
    known = {"prompt", "seed", "generation_config", *OPENAI}
    server.known = known
    found = generated(llm_folder, options(server), requests(3))
    assert len(found) == 8 and all(text.text for texts in found.values() for text in texts)
    taken = [body for *_, body, _ in server.asked if body.keys() <= known]
    assert len(taken) == 24 and len(server.asked) <= 24 + 4  # refused at most once by each at work
    assert all(OPENAI.items() <= body.items() for body in taken)
    assert {body["generation_config"] for body in taken} == {
        json.dumps(
            {
                "do_sample": True,
                "max_new_tokens": 24,
                "eos_token_id": [EOS],
                "temperature": 0.8,
                "top_p": 0.95,
                "top_k": 0,
            }
        )
    }


def test_a_server_that_rejects_these_fields_is_used_with_a_warning(server, llm_folder, caplog):
    server.known = {"prompt", "seed", *OPENAI}
    found = generated(llm_folder, options(server), requests(3))
    assert sum(len(texts) for texts in found.values()) == 24
    assert len([each for each in caplog.messages if "takes no top_k" in each]) == 1


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        ("<html>Welcome to nginx</html>", DataError, "with a page.*correct llm.endpoint.url"),
        ({"error": {"message": "out of memory"}}, RuntimeError, "without a text: .*out of memory"),
        ({"object": "error", "message": "busy"}, RuntimeError, "without a text: .*busy"),
        ({"choices": []}, RuntimeError, "without a text"),
        ({"choices": None}, RuntimeError, "without a text"),
        ({"choices": [{"text": "a"}, {"text": "b"}]}, DataError, "2 texts to one prompt.*'chat'"),
        ({"choices": [{"text": "a"}]}, DataError, "without `usage`"),
    ],
)
@pytest.mark.parametrize("api", ["completions", "chat"])
def test_success_without_a_text_is_an_error_that_shows_the_answer(
    server, llm_folder, api, answer, error, said
):
    server.answer = answer
    with pytest.raises(error, match=said):
        generated(llm_folder, options(server, api=api), requests(1)[:1])


def test_tokens_are_never_fewer_than_none(server, llm_folder):
    usage = {"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3}
    server.answer = {"choices": [{"text": "", "finish_reason": "stop"}], "usage": usage}
    found = generated(llm_folder, options(server), requests(1)[:1])
    assert found == {0: [Completion("", "stop", 0)]}


def test_a_server_that_ignores_the_seed_is_detected(server, llm_folder, caplog):
    server.content = lambda seed: "always the same"
    with pytest.raises(DataError, match=r"texts equal another of their query.*ignore `seed`"):
        generated(llm_folder, options(server), requests(8))
    assert len(server.asked) < 64  # it is told before all are written

    server.content = lambda seed: f"text {max(seed % 10, 3)}"  # four of ten are equal
    assert len(generated(llm_folder, options(server), requests(10))) == 8
    assert len([each for each in caplog.messages if "24 of 80" in each or "equal" in each]) == 1

    caplog.clear()
    greedy = [Request("q2d", "why?", "", tuple(range(40)), (0.0,) * 40)]
    server.content = lambda seed: "always the same"
    assert len(generated(llm_folder, options(server), greedy)) == 1 and not caplog.messages


def test_prompts_begin_once(server, llm_folder):
    generated(llm_folder, options(server), requests(1))
    assert {body["prompt"].count(BOS) for _, _, body, _ in server.asked} == {1}


def test_a_chat_gets_the_user_s_turn(server, llm_folder):
    generated(llm_folder, options(server, api="chat"), requests(1))
    for path, _, body, _ in server.asked:
        assert path == "/v1/chat/completions"
        turn = render_prompt("q2d", f"why is thing {body['seed'] // 10} grey?")
        assert body["messages"] == [{"role": "user", "content": turn}]


def test_requests_at_once_are_bounded(server, llm_folder):
    server.delay, server.together = 0.05, 3
    generated(llm_folder, options(server, concurrency=3), requests(3))
    assert server.most_at_once == 3


def test_a_busy_and_failing_server_is_asked_again(server, llm_folder):
    server.troubles = [(429, {"Retry-After": "1"}), (500, {}), (0, {}), (503, {})]
    asked = requests(1)[:1]
    found = generated(llm_folder, options(server), asked)
    assert found == {0: [Completion("text of seed 0 at 0.8", "stop", 7)]}
    times = [when for *_, when in server.asked]
    assert len(times) == 5
    assert times[1] - times[0] >= 1  # as the server said
    bodies = [body for _, _, body, _ in server.asked]
    assert all(body == bodies[0] for body in bodies)


def test_a_server_that_keeps_failing_is_an_error(server, llm_folder):
    server.troubles = [(500, {})] * 100
    with pytest.raises(RuntimeError, match=r"127.0.0.1:\d+/v1: .*; it still fails after 1 retries"):
        generated(llm_folder, options(server, retries=1), requests(1))


def test_an_absent_server_is_an_error(server, llm_folder):
    nowhere = options(server, url="http://127.0.0.1:9/v1", retries=0)
    with pytest.raises(RuntimeError, match=r"http://127.0.0.1:9/v1: Connection error"):
        generated(llm_folder, nowhere, requests(1))


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(401, "set OPENAI_API_KEY"), (404, "correct llm.endpoint.model"), (400, "does not accept")],
)
def test_a_wrong_request_is_not_repeated_and_the_key_not_shown(
    server, llm_folder, status, remedy, caplog
):
    server.troubles = [(status, {})]
    with caplog.at_level(logging.DEBUG), pytest.raises(DataError, match=remedy) as error:
        generated(llm_folder, options(server), requests(1)[:1])
    assert len(server.asked) == 1
    assert "no, Bearer ***, no" in str(error.value)
    assert KEY not in caplog.text
    assert error.value.__suppress_context__


def test_without_a_key_nothing_is_asked(server, llm_folder, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(DataError, match=r"there is no key for .*; set OPENAI_API_KEY"):
        generated(llm_folder, options(server), requests(1))
    assert not server.asked


@pytest.mark.parametrize("url", ["http://me:secret@host/v1", "http://host/v1?api_key=secret"])
def test_a_url_with_a_key_is_refused_and_not_repeated(llm_folder, url):
    with pytest.raises(DataError, match="a URL must not contain a key") as error:
        EndpointGenerator(llm_folder, EndpointOptions(url=url, model="llama"))
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("missing", [{"url": ""}, {"url": "host:8000/v1"}, {"model": ""}])
def test_what_is_missing_is_named(llm_folder, missing):
    given = {"url": "http://host/v1", "model": "llama"} | missing
    with pytest.raises(DataError, match=r"needs llm\.endpoint\.url.*llm\.endpoint\.model"):
        EndpointGenerator(llm_folder, EndpointOptions(**given))


def test_the_stage_keeps_rows_in_order_and_no_key(server, llm_folder, tmp_path):
    store = Store(str(tmp_path / "store"))
    queries = put_queries(store, QUERIES)

    def spec(**changes):
        endpoint = options(server, **changes)
        return specified(store, llm_folder, queries, engine="endpoint", settings=endpoint)

    server.troubles = [(429, {})] * 3
    made = run_stage(spec(), store, no_progress)
    texts = by_id(rows_of(store, made))
    assert sorted(texts) == [(id_, sample) for id_ in QUERIES for sample in range(4)]
    seeds = {body["seed"] for _, _, body, _ in server.asked}
    assert {f"text of seed {seed} at" for seed in seeds} == {text[:-4] for text in texts.values()}
    assert spec(url="http://other/v1", concurrency=9).key == spec().key
    assert spec(model="other").key != spec().key
    for path in (tmp_path / "store").rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes()


@pytest.mark.parametrize("per_shard", [16, 2])
def test_a_server_without_texts_ends_the_stage_and_nothing_is_kept(
    server, llm_folder, tmp_path, per_shard
):
    store = Store(str(tmp_path / "store"))
    queries = put_queries(store, QUERIES)
    endpoint = options(server, api="chat", concurrency=64)
    spec = specified(
        store,
        llm_folder,
        queries,
        engine="endpoint",
        settings=endpoint,
        queries_per_shard=per_shard,
    )
    server.content = lambda seed: None
    with pytest.raises(
        DataError, match=r"all 64 texts .* are empty, and none is kept.*content null"
    ):
        run_stage(spec, store, no_progress)
    assert not store.keys("expand")
    server.content = "text of seed {}".format  # mended
    assert run_stage(spec, store, no_progress).counts["empty"] == 0


def test_two_runs_of_one_stage_at_once_write_its_texts_once(server, llm_folder, tmp_path):
    store = Store(str(tmp_path / "store"))
    spec = specified(
        store, llm_folder, put_queries(store, QUERIES), engine="endpoint", settings=options(server)
    )

    def run(_: int) -> Artifact:
        return run_stage(spec, Store(store.url), no_progress)

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(run, range(2))
    assert one == other
    assert len(server.asked) == one.counts["texts"] == 64


def test_many_empty_texts_are_a_warning_in_the_reports(server, llm_folder, tmp_path):
    from tasks.expand import empty_warnings

    store = Store(str(tmp_path / "store"))
    queries = put_queries(store, QUERIES)
    server.content = lambda seed: None if seed % 2 else f"text {seed}"
    spec = specified(
        store, llm_folder, queries, engine="endpoint", settings=options(server, api="chat")
    )
    made = run_stage(spec, store, no_progress)
    empty = made.counts["empty"]
    said = f"{empty:.0f} of 64 texts ({100 * empty / 64:.0f} %) are empty"
    found = store.lookup(spec.key)
    assert found
    assert empty_warnings([("expand", found), ("query", queries)], []) == (f"expand: {said}",)


def test_the_loop_refuses_an_endpoint_before_any_work(tmp_path):
    from tasks.models import import_models
    from tasks.pipeline import Pipeline

    loop = JointLoopOptions(llm=LLMOptions(engine="endpoint"))
    with pytest.raises(DataError, match="a server keeps its model and the loop trains it"):
        import_models(Pipeline(str(tmp_path), loop))
