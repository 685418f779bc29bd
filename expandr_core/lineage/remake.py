"""Make an artifact again from its manifest alone, with all that it was made from."""

import logging
from typing import Any

from pydantic import ValidationError

from expandr_core.errors import DataError
from expandr_core.lineage.nodes import Lineage
from expandr_core.runtime.child import needs_child, run_in_child
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.runner import make_spec, module_of, run_stage
from expandr_core.store.artifacts import Artifact, StageSpec
from expandr_core.store.store import Store

log = logging.getLogger(__name__)
SHARD = "_shard"  # ends the stages of shards
_OF_ITS_RUN = ("prefect_flow_run", "fresh")


def spec_of(manifest: dict[str, Any]) -> StageSpec:
    """Return the specification of an artifact, from its manifest.

    Raises:
        DataError: if this version would make another artifact: the stage, its version or its options
            have changed. So it is for a shard, which its stage makes.
    """
    key, stage = manifest["key"], manifest["stage"]
    if stage.endswith(SHARD):
        raise DataError(
            f"{key} is a shard; make the artifact of {stage.removesuffix(SHARD)!r} again that it is a "
            "part of"
        )
    try:
        options = module_of(stage).OPTIONS(**manifest["options"])
    except (ImportError, ValidationError) as error:
        raise DataError(
            f"{key}: this version has no stage {stage!r} with these options; use the version that made "
            f"it (commit {manifest.get('commit') or 'not known'})"
        ) from error
    runtime = {name: v for name, v in manifest["runtime"].items() if name not in _OF_ITS_RUN}
    spec = make_spec(
        stage,
        options,
        {role: Artifact(**reference) for role, reference in manifest["inputs"].items()},
        seed=manifest["seed"],
        sources=manifest["sources"],
        max_shards=manifest.get("max_shards", 0),
        **runtime,
    )
    if spec.key != key:
        raise DataError(
            f"{key} would be {spec.key} in this version (version {manifest['version']} of the stage "
            f"{stage!r} then, {spec.version} now); use the version that made it (commit "
            f"{manifest.get('commit') or 'not known'})"
        )
    return spec


def remake(
    store: Store, key: str, into: Store, environment: dict[str, str] | None = None
) -> Artifact:
    """Make an artifact again in another store, after all that it was made from.

    Args:
        store: that keeps the manifests; no other file of it is read.
        key: of the artifact.
        into: store to make it in; what it has already is reused.
        environment: of this process, for faster children; see `run_in_child`.

    Raises:
        DataError: if this version would make another artifact, or one came out with other bytes, or a
            file from outside the store is not as it was.
    """
    made = Artifact(key=key, digest="")
    for node in Lineage(store).upstream([key]):
        spec = spec_of(dict(node.manifest))
        try:
            found = into.lookup(spec.key)
            if not found and needs_child(spec):
                found = run_in_child(spec, into, no_progress, environment=environment)
            made = found or run_stage(spec, into, no_progress)
        except (DataError, OSError) as error:
            outside = ", ".join(spec.sources)
            hint = f"; it is made from files outside the store ({outside})" if outside else ""
            raise DataError(f"{node.key} cannot be made again: {error}{hint}") from error
        if made.digest != node.manifest["digest"]:
            raise DataError(
                f"{node.key} came out with other bytes: {made.digest[:12]}, not "
                f"{node.manifest['digest'][:12]}; compare hardware and libraries (`expandr show KEY`)"
            )
        log.info("%s is made again", node.key)
    return made
