"""Print runs, artifacts and their lineage in the terminal, and verify them."""

import json
import shlex
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from expandr_cli.ablate import print_ablation
from expandr_cli.results import print_comparison, print_suite, print_summary
from expandr_core.errors import DataError
from expandr_core.evaluation.comparison import read_comparison
from expandr_core.lineage.options import changed_options
from expandr_core.store.manifests import DamagedArtifact, fact
from expandr_core.store.registry import run_named
from expandr_core.store.run_records import RecordedRun, find_recorded, unfinished
from expandr_core.store.store import Store
from tasks.stage import open_store


def show_any(out: Console, url: str, what: str) -> None:
    """Print a run or an artifact, with its lineage.

    Raises:
        DataError: if there is neither.
    """
    store = open_store(url)
    run = find_recorded(store.records(), run_named(store, what))
    if run and run.table:
        print_ablation(out, store, run.table)
        return
    if run and run.kind:
        print_suite(out, url, run.report, run.name)
        return
    if run:
        _show_run(out, store, run)
        return
    keys = store.keys(what)
    if not keys:
        raise DataError(
            unfinished(store.notes(), what)
            or f"{what!r} is neither a run nor an artifact in {store.url}"
        )
    if len(keys) > 1:
        listed = "\n  ".join(keys[:20])
        raise DataError(f"{what!r} is the beginning of {len(keys)} keys:\n  {listed}")
    _show_artifact(out, store, keys[0])


def _show_run(out: Console, store: Store, run: RecordedRun) -> None:
    seconds = (run.finished - run.started).total_seconds()
    out.print(f"run {run.name}, {seconds:.0f} s, Prefect flow run {run.flow_run_id}", style="bold")
    out.print("options that differ from the defaults:", highlight=False)
    out.print_json(json.dumps(changed_options(run)))
    table = Table("step", "artifact", "seconds when made", "counts")
    for step in run.steps:
        artifact = step.artifact
        counts = ", ".join(f"{k} {v:g}" for k, v in list(artifact.counts.items())[:3])
        table.add_row(
            step.title,
            artifact.key,
            f"{fact(store.manifest(artifact.key), 'seconds'):.1f}",
            counts,
        )
    out.print(table)
    _print_curves(out, store, [step.artifact.key for step in run.steps])
    print_summary(out, store, run)
    out.print("\nlineage of the best models", style="bold")
    seen: set[str] = set()
    for role in ("llm", "retriever"):
        out.print(_lineage(store, run.models[role].key, role, seen))


def _print_curves(out: Console, store: Store, keys: Iterable[str]) -> None:
    """Say where TensorBoard's logs of trainings lie, if this machine has them."""
    found = [folder for key in dict.fromkeys(keys) if (folder := store.curves / key).is_dir()]
    if found:
        where = found[0] if len(found) == 1 else store.curves
        out.print("curves of the training, on this machine:", highlight=False)
        out.print(
            f"  tensorboard --logdir {shlex.quote(str(where))}", highlight=False, soft_wrap=True
        )
        for folder in found if len(found) > 1 else []:
            out.print(f"  {folder}", highlight=False, soft_wrap=True)


def _show_artifact(out: Console, store: Store, key: str) -> None:
    manifest = store.manifest(key)
    out.print(key, style="bold")
    for name in ("digest", "created", "seconds", "commit", "hardware", "version", "seed"):
        out.print(f"  {name:<10}{fact(manifest, name)}", highlight=False)
    for name in ("python", "gpus", "peak_memory", "peak_gpu_memory", "tokens"):
        if manifest.get(name):  # earlier versions did not record them
            out.print(f"  {name:<10}{manifest[name]}", highlight=False)
    more = ["vllm_libraries"] if "vllm_libraries" in manifest else []
    for name in ("options", "counts", "libraries", *more, "sources"):
        out.print(f"  {name}", highlight=False)
        out.print_json(json.dumps(fact(manifest, name)), indent=2)
    files = Table("file", "bytes", "SHA-256")
    for file in manifest["files"]:
        files.add_row(file["path"], f"{file['size']:,}", file["sha256"])
    out.print(files)
    if manifest["parts"]:
        out.print(f"  {len(manifest['parts'])} parts, the first {manifest['parts'][0]['key']}")
    out.print(f"  in {store.url}/artifacts/{key}", highlight=False, soft_wrap=True)
    _print_curves(out, store, [key])
    artifact = store.lookup(key) if key.startswith("compare-") else None
    if artifact:
        print_comparison(out, read_comparison(store.local(artifact)))
    out.print("\nlineage", style="bold")
    out.print(_lineage(store, key, "", set()))


def _lineage(store: Store, key: str, role: str, seen: set[str]) -> Tree:
    """Walk from an artifact to its inputs, and on to the user's files."""
    label = f"{role}: {key}" if role else key
    if key in seen:
        return Tree(f"{label} (see above)")
    seen.add(key)
    manifest = store.manifest(key)
    seed, commit = f", seed {fact(manifest, 'seed')}", fact(manifest, "commit")
    commit = f", commit {commit}" if commit else ""
    tree = Tree(_with_facts(label, f"digest {manifest['digest'][:12]}{seed}{commit}"))
    for role_, artifact in fact(manifest, "inputs").items():
        file = f"/{artifact['path']}" if artifact["path"] else ""
        branch = _lineage(store, artifact["key"], f"{role_}{file}", seen)
        tree.add(branch)
    for name, sha in fact(manifest, "sources").items():
        tree.add(_with_facts(f"file {name}", f"SHA-256 {sha[:12]}"))
    return tree


def _with_facts(label: str, facts: str) -> Text:
    return Text.assemble(label, "  ", (facts, "dim"))


def verify_all(out: Console, url: str, beginning: str) -> int:
    """Compare every file with its manifest; print the damaged artifacts and return their number.

    Raises:
        DataError: if there is none.
    """
    store = open_store(url)
    keys = store.keys(beginning)
    if not keys:
        which = f"whose key begins with {beginning!r} " if beginning else ""
        raise DataError(f"there is no artifact {which}in {store.url}")
    damaged = 0
    for key in keys:
        try:
            store.verify(key)
        except (DamagedArtifact, FileNotFoundError) as error:
            damaged += 1
            out.print(f"damaged: {error}", highlight=False, soft_wrap=True)
    out.print(f"{len(keys) - damaged} of {len(keys)} artifacts are intact", highlight=False)
    return damaged
