"""nginx with our configuration: TLS outside, websockets through, 502 for an API that is down."""

import asyncio
import contextlib
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import websockets
from outside import INFRA, program, run
from ports import kept_port

MAIN = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/expandr.conf;
}}
"""


class Front(NamedTuple):
    """A running nginx: its ports, the port where it looks for the API, and its certificate."""

    https: int
    inner: int
    api: int
    certificate: Path


@pytest.fixture(scope="module")
def ports() -> Iterator[list[int]]:
    with contextlib.ExitStack() as kept:
        yield [kept.enter_context(kept_port()) for _ in range(4)]


@pytest.fixture(scope="module")
def front(ports, tmp_path_factory) -> Iterator[Front]:
    folder = tmp_path_factory.mktemp("nginx")
    nginx = program("nginx")
    run(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
        "-nodes", "-keyout", folder / "tls.key", "-out", folder / "tls.crt", "-days", "1",
        "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
    )  # fmt: skip
    http, https, inner, api = ports
    text = (INFRA / "nginx" / "expandr.conf.template").read_text()
    for old, new in {
        "${API_HOST}": f"127.0.0.1:{api}",
        "${SERVER_NAME}": "localhost",
        "${INNER_LISTEN}": f"127.0.0.1:{inner}",
        "${NGINX_LOCAL_RESOLVERS}": "127.0.0.1",
        "listen 80;": f"listen 127.0.0.1:{http};",
        "listen 443 ssl;": f"listen 127.0.0.1:{https} ssl;",
        "/etc/nginx/tls": str(folder),
    }.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "expandr.conf").write_text(text)
    (folder / "nginx.conf").write_text(MAIN.format(folder=folder))
    run("nginx", "-t", "-c", folder / "nginx.conf", "-p", folder)
    command = [nginx, "-c", folder / "nginx.conf", "-p", folder]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", inner)) == 0:
                    break
        assert process.poll() is None, (folder / "error.log").read_text()
        yield Front(https, inner, api, folder / "tls.crt")
    finally:
        process.terminate()
        process.wait(10)


def test_an_api_that_is_down_is_a_502_on_both_sides(front):
    context = ssl.create_default_context(cafile=str(front.certificate))
    outside = httpx.get(f"https://localhost:{front.https}/api/health", verify=context)
    inside = httpx.get(f"http://127.0.0.1:{front.inner}/api/health")
    assert (outside.status_code, inside.status_code) == (502, 502)


def test_websockets_and_the_password_pass_through_tls(front):
    seen = {}

    async def answer(connection):
        seen.update(connection.request.headers)
        async for message in connection:
            await connection.send(message)

    async def ask() -> str | bytes:
        context = ssl.create_default_context(cafile=str(front.certificate))
        url = f"wss://localhost:{front.https}/api/events/out"
        headers = {"Authorization": "Basic abc"}
        async with (
            websockets.serve(answer, "127.0.0.1", front.api),
            websockets.connect(url, ssl=context, additional_headers=headers) as connection,
        ):
            await connection.send("an event")
            return await connection.recv()

    assert asyncio.run(ask()) == "an event"
    assert seen["authorization"] == "Basic abc"
    assert seen["x-forwarded-proto"] == "https"
