"""Which queries' pairs are accepted if the options leave it open: it depends on the encoder."""

import contextlib
import json

from expandr_core.options.preferences import PreferenceOptions
from expandr_core.store.artifacts import Artifact
from expandr_core.store.manifests import reference
from expandr_core.store.store import Store

LOWEST_SHARE = 0.1  # of the queries, which is not accepted


def settled(options: PreferenceOptions, rewards: Artifact, store: Store) -> PreferenceOptions:
    """Return the options with the rule that "auto" stands for.

    Contriever has the paper's threshold. The similarities of other encoders lie elsewhere: nearly all
    above it, or all below. Lazy pairs cannot do without a threshold.
    """
    if options.acceptance != "auto":
        return options
    if options.lazy or _is_contriever(rewards, store):
        return options.model_copy(update={"acceptance": "threshold"})
    return options.model_copy(update={"acceptance": "quantile", "acceptance_value": LOWEST_SHARE})


def _is_contriever(rewards: Artifact, store: Store) -> bool:
    """Tell whether the retriever was Contriever before any training."""
    manifest = store.manifest(rewards.key)
    with contextlib.suppress(FileNotFoundError):  # removed: the last one that is known counts
        while "retriever" in manifest["inputs"]:
            manifest = store.manifest(manifest["inputs"]["retriever"]["key"])
    said = str(manifest["options"].get("convention"))
    config = store.local(reference(manifest)) / "config.json"
    if config.is_file():
        published = json.loads(config.read_bytes())
        said += f" {published.get('architectures')} {published.get('_name_or_path')}"
    return "contriever" in said.lower()
