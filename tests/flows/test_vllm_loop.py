"""The joint loop with an adapter that vLLM applies, kept apart from the model.

It needs vLLM's interpreter, as tests/core/test_vllm.py does.
"""

import os
from pathlib import Path

import pytest
import tiny_loop
from finished_loop import finished

from expandr_core.store import Store
from expandr_core.vllm_generator import DEFAULT_PYTHON

PYTHON = Path(os.environ.get("EXPANDR_VLLM_PYTHON") or DEFAULT_PYTHON)


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.skipif(not PYTHON.is_file(), reason="no vLLM; `make vllm-env` installs it")
def test_an_adapter_kept_apart_is_run_by_vllm(tmp_path):
    tiny = tiny_loop.OPTIONS
    llm = tiny.llm.model_copy(update={"engine": "vllm"})
    dpo = tiny.dpo.model_copy(update={"merge": False})
    run = finished(tmp_path, tiny.model_copy(update={"llm": llm, "dpo": dpo}))
    assert "merge the adapter, round 1" not in run.digests
    expansions = Store(str(tmp_path)).manifest(run.artifact("expand the test queries, round 1").key)
    assert expansions["options"]["engine"] == "vllm"
    adapter = run.artifact("align by DPO, round 1").key
    assert expansions["inputs"]["adapter"]["key"] == adapter
    assert expansions["inputs"]["llm"]["key"] == run.artifact("train the tiny LLM").key
    assert run.summary.models["llm"].key in (adapter, expansions["inputs"]["llm"]["key"])
