"""A copy of a store in which something upstream was otherwise, with all that depends on it."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from expandr_core.lineage.nodes import Lineage
from expandr_core.store.artifacts import Artifact, content_digest
from expandr_core.store.manifests import MANIFEST, SEAL, sealed
from expandr_core.store.run_records import RecordedRun, find_recorded
from expandr_core.store.store import Store

Change = Callable[[dict[str, Any], Path], None]


def doctored(
    original: Store, run: RecordedRun, target: Path, changes: dict[str, Change]
) -> tuple[Store, RecordedRun]:
    """Copy a store and change artifacts of some stages; what was made from these has other bytes.

    Args:
        original: to copy.
        run: of it.
        target: a new folder.
        changes: of the manifest and the files, by stage.
    """
    shutil.copytree(original.root, target)
    lineage = Lineage(original, run)
    digests: dict[tuple[str, str], str] = {}  # of what has changed, by key and path
    changed_keys = set[str]()
    for node in lineage.upstream([run.report.key]):
        folder = target / "artifacts" / node.key
        manifest = json.loads((folder / MANIFEST).read_text())
        manifest.pop(SEAL)
        affected = _with_other_inputs(manifest, digests)
        if node.stage in changes:
            changes[node.stage](manifest, folder)
        if affected or (node.stage in changes and node.stage != "prepare"):
            changed_keys.add(node.key)
            made_from = json.dumps([node.key, manifest["inputs"]])
            mark = hashlib.sha256(made_from.encode()).hexdigest()
            manifest["files"].append({"path": "other", "size": 0, "sha256": mark})
            (folder / "other").touch()
        files = {file["path"]: file["sha256"] for file in manifest["files"]}
        for path, old in ((f["path"], f["sha256"]) for f in node.manifest["files"]):
            if files[path] != old:
                digests[node.key, path] = files[path]
        parts = [Artifact(key=p["key"], digest=p["digest"]) for p in manifest["parts"]]
        manifest["digest"] = content_digest(files, parts)
        if manifest["digest"] != node.manifest["digest"]:
            digests[node.key, ""] = manifest["digest"]
        if node.stage == "compare":
            _shift(folder / "comparison.json", manifest["inputs"], changed_keys)
        (folder / MANIFEST).write_text(sealed(manifest))
    store = Store(str(target))
    found = find_recorded(store.records(), run.name)
    assert found
    return store, found


def _with_other_inputs(manifest: dict[str, Any], digests: dict[tuple[str, str], str]) -> bool:
    """Refer to inputs by their new digests; tell whether any has changed."""
    affected = False
    for reference in manifest["inputs"].values():
        new = digests.get((reference["key"], reference.get("path", "")))
        if new:
            reference["digest"], affected = new, True
    return affected


def _shift(path: Path, inputs: dict[str, Any], changed: set[str]) -> None:
    """Give other numbers to the systems that have changed."""
    comparison = json.loads(path.read_text())
    for row in comparison["results"]:
        if inputs[f"measured/{row['dataset']}/{row['system']}/0"]["key"] in changed:
            row["ndcg_at_10"] += 0.01
    path.write_text(json.dumps(comparison))
