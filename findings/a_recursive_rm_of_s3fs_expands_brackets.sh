#!/usr/bin/env bash
# Guess: `rm(path, recursive=True)` of s3fs removes the folder of that name. Other calls take a path as it is:
# `exists`, `ls` and `rm_file` do, and S3 keys may hold brackets.
# Seen (s3fs 2026.9.0, fsspec 2026.9.0): `rm` reads its path as a pattern first, so `[1]` is a set of characters.
# The folder "run[1]" stays, and the folder "run1" beside it is removed. No error and no warning. Whoever removes
# a folder whose name comes from somebody else must list it with `find` and remove the files one by one.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check s3fs==2026.9.0 fsspec==2026.9.0 'moto[server]==5.2.5'
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import logging

import s3fs
from moto.server import ThreadedMotoServer

logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
server.start()
host, port = server.get_host_and_port()
files = s3fs.S3FileSystem(key="a", secret="b", endpoint_url=f"http://{host}:{port}", use_listings_cache=False)
files.mkdir("bucket")
for name in ("run1", "run[1]"):
    files.pipe_file(f"bucket/{name}/weights", b"...")
assert files.exists("bucket/run[1]/weights") and files.ls("bucket/run[1]") == ["bucket/run[1]/weights"]
files.rm("bucket/run[1]", recursive=True)
left = sorted(files.find("bucket"))
print("asked to remove bucket/run[1]; left:", left)
server.stop()
assert left == ["bucket/run[1]/weights"], "the behaviour has changed"
PYTHON
