"""How a model's chat template is rendered is the same for all who write or train prompts."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from store_keys import full

from expandr_core.errors import DataError
from expandr_core.options.generation import LLMOptions
from expandr_core.options.loop import JointLoopOptions
from expandr_core.store.artifacts import Artifact, StageSpec
from expandr_core.store.run_records import StepId
from expandr_core.store.store import Store
from tasks.align import align
from tasks.expand import chat_of, write_answers, write_candidates, write_expansions, write_greedy
from tasks.pipeline import Pipeline

DATED = "{{ strftime_now('%Y') }}{% if enable_thinking %}hm{% endif %}"
PLAIN = "{% if enable_thinking %}hm{% endif %}"
QUERIES = Artifact(key=full("prepare-1"), digest="1" * 64)


@dataclass(frozen=True)
class Asked(Pipeline):
    """Notes what it is asked to make."""

    asked: list[StageSpec] = field(default_factory=list)

    def make(self, step_id: StepId, title: str, spec: StageSpec) -> Artifact:
        self.asked.append(spec)
        return Artifact(key=spec.key, digest=spec.key)


def put_llm(store: Store, template: str) -> Artifact:
    folder = store.scratch / "llm"
    folder.mkdir()
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return store.commit(full("import_model-1"), folder, [], {"counts": {}, "inputs": {}})


def asked_for(folder: Path, source: str, **llm: Any) -> list[Any]:
    pipeline = Asked(str(folder), JointLoopOptions(llm=LLMOptions(**llm)))
    model = put_llm(Store(str(folder)), source)
    write_candidates(pipeline, QUERIES, model)
    write_answers(pipeline, QUERIES, model)
    write_expansions(pipeline, QUERIES, model, "expand", "sampled")
    write_greedy(pipeline, QUERIES, model, "expand greedily", "greedy")
    align(pipeline, model, QUERIES)
    assert len(pipeline.asked) == 6
    return [spec.options.get("chat") for spec in pipeline.asked]


@pytest.mark.parametrize(
    ("template", "llm", "chat"),
    [
        (PLAIN, {}, {}),
        (PLAIN, {"date": "2026-03-09"}, {}),
        (DATED, {}, {"date": "2024-07-26"}),
        (DATED, {"date": "2026-03-09"}, {"date": "2026-03-09"}),
        (PLAIN, {"template": {"enable_thinking": False}}, {"template": {"enable_thinking": False}}),
    ],
)
def test_expansions_answers_dpo_and_merge_have_it_in_their_keys(tmp_path, template, llm, chat):
    assert asked_for(tmp_path, template, **llm) == [{"template": {}, "date": ""} | chat] * 6


def test_of_an_adapter_it_is_the_template_of_its_model(tmp_path):
    store = Store(str(tmp_path))
    model = put_llm(store, DATED)
    folder = store.scratch / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({}))
    inputs = {"inputs": {"llm": model.model_dump()}}
    adapter = store.commit(full("dpo-1"), folder, [], {"counts": {}, **inputs})
    pipeline = Pipeline(str(tmp_path))
    assert chat_of(pipeline, adapter) == chat_of(pipeline, model)
    assert chat_of(pipeline, adapter).date == "2024-07-26"


def test_a_variable_that_the_template_does_not_read_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no 'thinking'; did you mean enable_thinking\?"):
        asked_for(tmp_path, PLAIN, template={"thinking": False})
