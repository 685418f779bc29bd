"""Artifacts for the tests of the store."""

import shutil

from store_keys import full

from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store

KEY = full("expand-1")


def put(
    store: Store, key: str, files: dict[str, str], parts: list[Artifact] | None = None, **facts
):
    folder = store.scratch / "put" / key
    shutil.rmtree(folder, ignore_errors=True)
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    folder.mkdir(parents=True, exist_ok=True)
    return store.commit(full(key), folder, parts or [], {"counts": {"rows": len(files)}, **facts})


def with_parts(store: Store) -> Artifact:
    parts = [put(store, f"expand_shard-{n}", {"rows": f"{n}"}) for n in range(2)]
    return put(store, KEY, {"whole": "w"}, parts)
