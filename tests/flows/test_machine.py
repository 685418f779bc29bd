"""What belongs to a machine comes from its environment, and changes no artifact."""

from expandr_core.store.artifacts import StageSpec
from tasks.stage import on_this_machine


def test_the_interpreter_of_vllm_is_known_to_the_stage_and_not_in_its_key(monkeypatch):
    spec = StageSpec(stage="expand", version=1, runtime={"device": "cpu"})
    monkeypatch.delenv("EXPANDR_VLLM_PYTHON", raising=False)
    assert on_this_machine(spec).runtime == {"device": "cpu"}
    monkeypatch.setenv("EXPANDR_VLLM_PYTHON", "/opt/vllm/bin/python")
    there = on_this_machine(spec)
    assert there.runtime == {"device": "cpu", "vllm_python": "/opt/vllm/bin/python"}
    assert there.key == spec.key
