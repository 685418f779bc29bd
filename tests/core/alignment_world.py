"""A language model of random weights, rewarded candidates, and pairs that are chosen from them."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
from candidates import judged
from evaluation_world import make, put
from flat_options import flat
from store_keys import full

from expandr_core.options.base import Options
from expandr_core.options.generation import PromptOptions
from expandr_core.preferences import rewards as rewards_module
from expandr_core.runtime.job import Job, no_progress
from expandr_core.runtime.runner import make_spec, module_of
from expandr_core.stages import pairs
from expandr_core.store.artifacts import Artifact, StageSpec
from expandr_core.store.store import Store

SIMILARITIES = [(0.9, 0.9), (0.8, 0.2), (0.1, 0.8), (0.0, 0.1)]  # rewards 2, 5/6, 5/6, 1/2
SETTINGS: dict[str, Any] = {
    "learning_rate": 0.01,
    "epochs": 1,
    "batch_size": 4,
    "device_batch_size": 4,
    "max_tokens": 120,
    "prompt": PromptOptions(max_tokens=90),
    "evaluation_steps": 4,
}


def put_world(
    store: Store, llm_folder: Path, queries: int = 12, **choose: Any
) -> dict[str, Artifact]:
    """Put the inputs of the stages sft, dpo and kto into a store; every text has a length of its own.

    Args:
        store: that has none of them.
        llm_folder: of the language model.
        queries: each has four candidates; the summed similarity of the best is 1.8 less n/100.
        choose: options of the stage pairs.
    """
    folder = shutil.copytree(llm_folder, store.scratch / "llm")
    by_query = []
    for n in range(queries):
        less = [(one - n / 200, two - n / 200) for one, two in SIMILARITIES]
        texts = [
            f"text {'very ' * (n % 5 * (place + 1))}good {place}" for place in range(len(less))
        ]
        by_query.append(judged(less, texts=texts, query_id=f"q{n:02}", query=f"why is {n} grey?"))
    shards = [by_query[: queries // 2], by_query[queries // 2 :]]
    parts = []
    for number, shard in enumerate(shards):
        rows = [row for own in shard for row in own]
        table = pa.Table.from_pylist(rows, rewards_module.schema())
        parts.append(put(store, f"reward_shard-{number}", {"rewards.parquet": table}))
    rewards = put(store, "reward-1", {}, parts)
    chosen = {"acceptance": "threshold", "acceptance_value": 0.0, "dpo_dev_share": 0.2} | choose
    made, _ = make(store, "pairs", flat(pairs.OPTIONS, **chosen), {"rewards": rewards})
    llm = store.commit(full("tiny_llm-1"), folder, [], {"counts": {}})
    return {"llm": llm, "pairs": made, "rewards": rewards}


def spec_of(stage: str, inputs: dict[str, Artifact], **options: Any) -> StageSpec:
    """Specify a stage of alignment; only kto reads the rewards."""
    own = {role: each for role, each in inputs.items() if role != "rewards" or stage == "kto"}
    settings: Options = flat(module_of(stage).OPTIONS, **(SETTINGS | options))
    return make_spec(stage, settings, own, device="cpu")


def job_of(store: Store, spec: StageSpec, folder: Path) -> Job:
    """Return a job that works in a folder, which is not deleted afterwards."""
    for name in ("out", "checkpoints"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    options = module_of(spec.stage).OPTIONS(**spec.runtime["options"])
    paths = {role: store.local(artifact) for role, artifact in spec.inputs.items()}
    return Job(spec, options, paths, folder / "out", folder / "checkpoints", store, no_progress)
