"""What is served is what `expandr search` finds, whatever clients send and whoever is the champion."""

import gc
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import openai_server
import pytest
import uvicorn
from fastapi.testclient import TestClient
from typer.testing import CliRunner
from waiting import SECONDS, wait_until

from expandr_cli.main import app
from expandr_cli.search import served
from expandr_cli.serve import _endpoint, _Finder
from expandr_core.options.generation import EndpointOptions
from expandr_core.serving.answers import Asked, answer
from expandr_core.serving.app import make_app
from expandr_core.serving.opened import Opened
from expandr_core.serving.server import Limits, Server
from expandr_core.serving.writer import Writer, Written
from expandr_core.store.artifacts import Artifact
from expandr_core.store.manifests import MANIFEST
from expandr_core.store.store import Store
from flows.run_record import find_run

QUESTIONS = [f"what is {word} for?" for word in ("it", "that", "gold", "this herb", "salt", "tin")]
LIMITS = Limits(query_characters=200, passages=20, texts=4, together=8, body_bytes=20_000)
TOKEN = "a secret"
SERVED_AT = r"serving run .* at (http://[\d.:]+)"
get, post = (partial(each, timeout=60) for each in (httpx.get, httpx.post))
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script> \u202e {{ 7 * 7 }}"


class Served(NamedTuple):
    """A server in a thread of this process."""

    store: str
    server: Server
    url: str

    def post(self, path: str, **body: Any) -> httpx.Response:
        return post(f"{self.url}/{path}", json=body)


@contextmanager
def champion_served(store: Path) -> Iterator[Served]:
    """Serve the champion of a store, which is its one run."""
    said = CliRunner().invoke(app, ["promote", "--store", str(store)])
    assert said.exit_code == 0, said.output
    find = _Finder(Store(str(store)), "", "here", None, {})
    server = Server(find.first(), LIMITS, find.newer, 0.05)
    with listening(make_app(server)) as url:
        yield Served(str(store), server, url)


@pytest.fixture(scope="module")
def serving(first, tmp_path_factory) -> Iterator[Served]:
    store = shutil.copytree(first.record.store, tmp_path_factory.mktemp("serving") / "store")
    with champion_served(store) as served:
        yield served


@pytest.fixture
def exchanging(store) -> Iterator[Served]:
    """A server whose champion its test exchanges."""
    with champion_served(store) as served:
        yield served


class listening:
    """Serve an application in a thread."""

    def __init__(self, application: Any):
        config = uvicorn.Config(application, port=0, log_level="error")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)

    def __enter__(self) -> str:
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            self._thread.join(0.02)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()


def hits_of(found: dict[str, Any]) -> list[tuple[str, float]]:
    return [(hit["passage_id"], hit["score"]) for hit in found["hits"]]


@pytest.mark.parametrize("mode", ["auto", "expanded", "alone"])
def test_hits_and_scores_are_those_of_a_search_by_itself_to_the_bit(serving, mode):
    store = Store(serving.store)
    run = find_run(store, "latest")
    assert run
    writer = Writer(store, run.models["llm"], run.options, None, {})
    opened = Opened(store, served(store, run), writer)
    with ThreadPoolExecutor(len(QUESTIONS)) as pool:  # so that some are computed together
        answers = pool.map(
            lambda each: serving.post("search", query=each, k=7, mode=mode), QUESTIONS
        )
    for question, said in zip(QUESTIONS, answers, strict=True):
        assert said.status_code == 200, said.text
        found = said.json()
        [alone] = answer(opened, [Asked(question, 7, mode)])
        rows = alone.hits.to_pylist()
        assert hits_of(found) == [(row["passage_id"], row["score"]) for row in rows]
        assert (found["expansion"], found["gate"]) == (alone.expansion, alone.decision)
        assert found["served"] == {"model": "demo", "version": 1, "run": run.name}


def test_a_query_without_an_expansion_has_the_scores_of_fused_ranks_as_when_it_is_measured(
    serving, monkeypatch
):
    store = Store(serving.store)
    run = find_run(store, "latest")
    assert run
    retriever = run.options.retriever
    fusion = retriever.fusion.model_copy(update={"method": "rrf"})
    changed = {"retriever": retriever.model_copy(update={"fusion": fusion})}
    options = run.options.model_copy(update=changed)
    writer = Writer(store, run.models["llm"], options, None, {})
    monkeypatch.setattr(writer, "write", lambda asked: [Written("", False) for _ in asked])
    opened = Opened(store, served(store, run.model_copy(update={"options": options})), writer)
    [found] = answer(opened, [Asked(QUESTIONS[0], 3, "expanded", compare=True)])
    assert found.alone and found.hits["passage_id"] == found.alone["passage_id"]
    assert found.hits["score"].to_pylist() == pytest.approx([1 / 61, 1 / 62, 1 / 63])


def test_the_command_prints_what_is_served(serving):
    command = ["search", QUESTIONS[0], "-k", "3", "--store", serving.store]
    printed = CliRunner().invoke(app, command, env={"COLUMNS": "300"}).output
    found = serving.post("search", query=QUESTIONS[0], k=3).json()
    lines = [f"{hit['rank']:>3}. {hit['score']:.3f}  {hit['passage_id']}" for hit in found["hits"]]
    assert [line for line in lines if line in printed] == lines


def test_an_expansion_is_written_once_and_a_seed_gives_another_one(serving):
    query = "who has seen it?"
    first, again = (serving.post("expand", query=query).json() for _ in range(2))
    assert (first["remembered"], again["remembered"]) == (False, True)
    assert first["expansion"] == again["expansion"]
    sampled = {serving.post("expand", query=query, seed=n).json()["expansion"] for n in (1, 2, 1)}
    assert len(sampled) == 2


def test_a_store_on_s3_is_served_like_its_copy_in_a_folder(serving, s3, tmp_path):
    local, remote = Store(serving.store), Store("s3://bucket/store", tmp_path / "scratch")
    for key in local.keys():  # noqa: SIM118
        story = local.manifest(key)
        parts = [Artifact(**part) for part in story["parts"]]
        shutil.copytree(local.folder(key), remote.scratch / key)
        (remote.scratch / key / MANIFEST).unlink()
        del story["files"]  # which get ETags
        remote.commit(key, remote.scratch / key, parts, story)
    [record] = local.records()
    remote.write_record(record["name"], record)
    find = _Finder(remote, "latest", "here", None, {})
    opened = find.first()
    with TestClient(make_app(Server(opened, LIMITS, find.newer, 60))) as client:
        found = client.post("search", json={"query": QUESTIONS[0]}).json()
    said = serving.post("search", query=QUESTIONS[0]).json()
    assert (hits_of(found), found["expansion"]) == (hits_of(said), said["expansion"])
    assert find.newer(opened) is None


def test_vectors_are_those_of_the_encoder(serving):
    texts = ["a moth", "it lives in the north"]
    encoder = serving.server.opened.encoder
    for kind, encode in (("query", encoder.encode_queries), ("passage", encoder.encode_passages)):
        said = serving.post("embed", texts=texts, kind=kind).json()
        assert said["vectors"] == encode(texts).tolist()


@pytest.mark.parametrize(
    ("path", "body", "status", "reason"),
    [
        ("search", {"query": "x" * 201}, 422, "at most 200 characters"),
        ("search", {"query": " \n"}, 422, "it is empty"),
        ("search", {"query": "a", "k": 21}, 422, r"at most 20 passages"),
        ("search", {"query": "a", "k": 0}, 422, "greater than or equal to 1"),
        ("search", {"query": "a", "mode": "distilled"}, 422, "distilled query encoder is not served"),
        ("search", {"query": "a", "model": "x"}, 422, "model: Extra inputs"),
        ("search", {"query": ["a"]}, 422, "valid string"),
        ("search", {"query": "a", "seed": -1}, 422, "seed"),
        ("search", {}, 422, "query: Field required"),
        ("embed", {"texts": ["a"] * 5}, 422, "at most 4 texts"),
        ("embed", {"texts": ["a", "x" * 201]}, 422, "at most 200 characters"),
        ("expand", {"query": "x" * 30_000}, 413, "more than 20,000 bytes"),
        ("nothing", {}, 404, "Not Found"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused_with_its_reason(serving, path, body, status, reason):
    said = serving.post(path, **body)
    assert said.status_code == status and re.search(reason, said.json()["detail"]), said.text
    assert "xxxx" not in said.text


@pytest.mark.parametrize(
    "body",
    [
        b"{", b"\xff\xfe", b"[]", b"null", b"[" * 9000, b'{"query": "\\ud800"}',
        b'{"query": "a", "k": 1e999}', b'{"query": "a", "k": ' + b"9" * 5000 + b"}",
        b'{"query": "a", "seed": NaN}',
    ],
)  # fmt: skip
def test_no_body_breaks_the_server(serving, body):
    said = post(f"{serving.url}/search", content=body, headers={"Content-Type": "application/json"})
    assert said.status_code in (400, 422) and said.json()["detail"]


def test_trouble_of_the_llm_s_server_is_said_and_queries_without_the_llm_go_on(
    serving, first, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    with openai_server.running() as llm:
        endpoint = EndpointOptions(url=llm.url, model="llama", retries=0)
        opened = _Finder(Store(serving.store), "", llm.url, endpoint, {}).first()
        server = Server(opened, LIMITS, lambda _: None, 60)
        with listening(make_app(server)) as url, httpx.Client(base_url=url, timeout=60) as client:
            for status, reason in (
                (401, "set OPENAI_API_KEY"),
                (500, "code: 500"),
                (0, "Connection"),
            ):
                for path, mode in (("search", {"mode": "expanded"}), ("expand", {})):
                    llm.troubles = [(status, {})]
                    said = client.post(path, json={"query": "what is it?", **mode})
                    assert said.status_code == 503 and reason in said.json()["detail"], said.text
                    assert said.headers["Retry-After"] and "a key" not in said.text
                alone = client.post("search", json={"query": "what is it?", "mode": "alone"})
                assert alone.status_code == 200 and len(alone.json()["hits"]) == 10
            found = client.post("expand", json={"query": "what is it?"}).json()
            assert found["expansion"] == "text of seed 0 at 0.0" and not found["remembered"]
        del server.opened
        adapter = first.artifact("dpo", 1)  # which a server has merged
        writer = Writer(opened.store, adapter, opened.served.options, endpoint, {})
        assert writer.write([("what is it?", None)])[0].text == found["expansion"]


def test_a_server_of_the_llm_that_never_answers_is_given_up_in_time(serving, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and says nothing
        llm = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        endpoint = _endpoint(llm, "llama", "completions", 0.5)
        opened = _Finder(Store(serving.store), "", llm, endpoint, {}).first()
        server = Server(opened, LIMITS, lambda _: None, 60)
        with listening(make_app(server)) as url, httpx.Client(base_url=url, timeout=60) as client:
            said = client.post("search", json={"query": "what is it?", "mode": "expanded"})
            assert said.status_code == 503 and "timed out" in said.json()["detail"]
            assert 0.5 <= said.elapsed.total_seconds() < 20 and said.headers["Retry-After"]
            alone = client.post("search", json={"query": "what is it?", "mode": "alone"})
            assert alone.status_code == 200
        silent.setblocking(False)
        silent.accept()  # at the start
        silent.accept()
        with pytest.raises(BlockingIOError):  # it was asked once for the query
            silent.accept()


def test_odd_texts_are_searched_for_like_others(serving):
    for query in (HOSTILE, "\x00\x1b[31m", "\U0001f980" * 200, "</s><|im_end|>", "a\nb"):
        assert serving.post("search", query=query).status_code == 200, query


def test_a_body_of_unknown_length_is_limited_too(serving):
    chunks = (b"a" * 1000 for _ in range(50))
    said = post(
        f"{serving.url}/search", content=chunks, headers={"Content-Type": "application/json"}
    )
    assert said.status_code == 413


def test_the_metrics_and_the_lineage_tell_what_is_served(serving):
    serving.post("search", query=QUESTIONS[0])
    text = get(f"{serving.url}/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(lines['expandr_requests_total{path="/search",status="200"}']) >= 1
    assert float(lines["expandr_batch_requests_count"]) >= 1
    assert float(lines["process_resident_memory_bytes"]) > 1e7
    run = find_run(Store(serving.store), "latest")
    assert run and f'run="{run.name}",version="' in text
    found = get(f"{serving.url}/lineage").json()
    assert found["models"]["llm"] == run.models["llm"].key
    assert {"demo_world", "prepare", "encode"} <= {each["stage"] for each in found["artifacts"]}
    assert get(f"{serving.url}/health").json() == {"status": "ready"}
    assert get(f"{serving.url}/docs").status_code == 404


def test_only_the_token_opens_the_door(serving):
    server = Server(serving.server.opened, LIMITS, lambda _: None, 60)
    with listening(make_app(server, TOKEN)) as url:
        for given, status in (
            (None, 401), ("Bearer x", 401), (f"Basic {TOKEN}", 401), (f"Bearer {TOKEN}", 200),
            ("Bearer \xe9", 401),
        ):  # fmt: skip
            headers = {"Authorization": given.encode("latin-1")} if given else {}
            for path in ("metrics", "lineage"):
                said = get(f"{url}/{path}", headers=headers)
                assert said.status_code == status, (given, path)
        assert post(f"{url}/search", json={"query": "a"}).status_code == 401
        assert get(f"{url}/health").status_code == get(url).status_code == 200
    del server.opened  # FastAPI's caches keep an application, and so its server


def test_the_page_shows_both_sides_and_asks_nobody_else(serving, browser):
    [(query, judged), *_] = serving.server.opened.judged.items()
    page = browser.new_page(viewport={"width": 400, "height": 900})
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(serving.url)
    page.locator("#examples button").first.wait_for()
    for width, scheme in ((400, "light"), (1300, "dark")):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        page.fill("#query", query)
        page.select_option("#mode", "expanded")
        page.fill("#k", "20")
        with page.expect_response("**/search") as answered:
            page.click("#go")
        found = answered.value.json()
        page.locator("#go:enabled").wait_for()
        assert page.inner_text("#expansion").split() == found["expansion"].split()
        for side, hits in (("before", found["alone"]), ("after", found["hits"])):
            assert page.locator(f"#{side} li").count() == 20
            relevant = [hit for hit in hits if judged.get(hit["passage_id"], 0) > 0]
            assert page.locator(f"#{side} li.relevant").count() == len(relevant)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.select_option("#mode", "alone")  # nothing to compare, so one list
        page.click("#go")
        page.locator("#before").wait_for(state="hidden")
        assert page.locator("#after li").count() == 20
        assert page.inner_text("#decision") == "This search has no expansion."
        page.select_option("#mode", "expanded")
    hostile = {**found, "expansion": HOSTILE, "hits": [{**found["hits"][0], "text": HOSTILE}]}
    page.route("**/search", lambda route: route.fulfill(json=hostile))
    page.fill("#query", HOSTILE)
    page.click("#go")
    page.locator("#after li:only-child").wait_for()
    assert page.inner_text("#expansion") == page.inner_text("#after p") == HOSTILE
    assert page.locator("main img, main script").count() == 0
    page.close()
    assert all(url.startswith((serving.url, "data:")) for url in asked) and not said


def test_a_new_champion_is_served_without_a_lost_request_and_the_old_one_is_let_go(exchanging):
    store = Store(exchanging.store)
    [record] = [each for each in store.records() if "kind" not in each]
    name = "20990101T000000-later-run"
    store.write_record(name, record | {"name": name, "options": record["options"] | {"seed": 9}})
    old, done = weakref.ref(exchanging.server.opened), threading.Event()

    def ask(number: int) -> list[tuple[int, int]]:
        seen = []
        with httpx.Client(timeout=60) as client:
            while not done.is_set():
                body = {"query": f"{QUESTIONS[number % 6]} {len(seen)} {number}"}
                said = client.post(f"{exchanging.url}/search", json=body)
                seen.append((said.status_code, said.json()["served"]["version"]))
                if seen[-3:] == [(200, 2)] * 3:
                    break
        return seen

    with ThreadPoolExecutor(6) as pool:
        seen = [pool.submit(ask, number) for number in range(6)]
        promoted = CliRunner().invoke(app, ["promote", name, "--store", exchanging.store])
        assert promoted.exit_code == 0, promoted.output
        try:
            answers = [each.result(SECONDS) for each in seen]
        finally:
            done.set()
    for own in answers:
        assert [status for status, _ in own] == [200] * len(own)
        assert [version for _, version in own] == sorted(version for _, version in own)
        assert own[-1][1] == 2

    def old_one_is_gone() -> bool:
        gc.collect()
        return old() is None

    wait_until(old_one_is_gone)


def test_a_stopped_server_answers_what_it_has_begun_and_asks_for_the_token_of_its_environment(
    serving,
):
    command = [sys.executable, "-m", "expandr_cli.main", "serve", "--store", serving.store]
    command += ["--port", "0", "--run", "demo/1"]
    environment = os.environ | {"EXPANDR_TOKEN": TOKEN}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr
    place = next(said[1] for line in process.stderr if (said := re.search(SERVED_AT, line)))
    url, headers = f"{place}/search", {"Authorization": f"Bearer {TOKEN}"}
    body = {"query": QUESTIONS[0], "mode": "expanded"}
    assert post(url, json=body).status_code == 401
    with httpx.Client(headers=headers, timeout=60) as client, ThreadPoolExecutor(8) as pool:
        asked = [
            pool.submit(client.post, url, json=body | {"query": f"{each} {n}"})
            for n, each in enumerate(QUESTIONS * 4)
        ]
        assert asked[0].result().status_code == 200
        process.send_signal(signal.SIGTERM)
        statuses = [each.result().status_code for each in asked if not each.exception(SECONDS)]
    assert process.wait(SECONDS) == 0
    assert statuses and set(statuses) == {200}


@pytest.mark.parametrize(
    ("status", "reason"), [(401, "set OPENAI_API_KEY"), (404, "llm.endpoint.m")]
)
def test_a_server_of_the_llm_that_refuses_us_is_noticed_at_the_start(
    serving, monkeypatch, status, reason
):
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    with openai_server.running() as llm:
        llm.troubles = [(status, {})]
        command = ["serve", "--store", serving.store, "--port", "0", "--llm-model", "llama"]
        said = CliRunner().invoke(app, [*command, "--llm", llm.url])
    assert said.exit_code == 2 and reason in said.output and "a key" not in said.output


def test_what_makes_no_sense_is_said_before_anything_is_loaded(serving, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    empty = tmp_path / "token"
    empty.touch()
    taken = socket.create_server(("127.0.0.1", 0))
    for more, words in (
        (["--token-file", str(empty)], "is empty"),
        (["--token-file", str(tmp_path / "none")], "cannot be read"),
        (["--llm", "there"], "give 'here', 'none', or the URL"),
        (["--llm", "http://x/v1"], "--llm-model"),
        (
            ["--llm", "http://x/v1", "--llm-model", "m"],
            "--llm http://x/v1: set OPENAI_API_KEY, to any",
        ),
        (["--run", "x/champion"], "there is no run 'x/champion'"),
        (["--port", str(taken.getsockname()[1])], "is in use; name another by --port"),
    ):
        said = CliRunner().invoke(app, ["serve", "--store", serving.store, "--port", "0", *more])
        assert said.exit_code == 2 and words in said.output, said.output
        assert "serving run" not in said.output
    taken.close()


@pytest.mark.parametrize("question", [" ", "half a character: \udcff"])
def test_a_question_that_is_no_text_is_refused(serving, question):
    said = CliRunner().invoke(app, ["search", question, "--store", serving.store])
    assert said.exit_code == 2 and "error: the question" in said.output, said.output
