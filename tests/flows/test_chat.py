"""How a model's chat template is rendered is the same for all who write or train prompts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import PrivateAttr
from store_keys import full

from expandr_core.errors import DataError
from expandr_core.options.base import Options
from expandr_core.options.generation import LLMOptions
from expandr_core.options.loop import JointLoopOptions
from expandr_core.runtime.runner import make_spec
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store
from tasks.dpo import align
from tasks.expand import write_answers, write_candidates, write_expansions, write_greedy
from tasks.stage import Workspace

DATED = "{{ strftime_now('%Y') }}{% if enable_thinking %}hm{% endif %}"
PLAIN = "{% if enable_thinking %}hm{% endif %}"
QUERIES = Artifact(key=full("prepare-1"), digest="1" * 64)


class Asked(Workspace):
    """Notes what it is asked to make."""

    _options: dict[str, Any] = PrivateAttr(default_factory=dict)

    def make(
        self,
        title: str,
        stage: str,
        options: Options,
        inputs: Mapping[str, Artifact | None] | None = None,
        sources: dict[str, str] | None = None,
        max_shards: int = 0,
    ) -> Artifact:
        given = {role: artifact for role, artifact in (inputs or {}).items() if artifact}
        spec = make_spec(stage, options, given, seed=self.seed)
        self._options[f"{title}: {stage}"] = spec.options
        return Artifact(key=spec.key, digest=spec.key)


def put_llm(store: Store, template: str) -> Artifact:
    folder = store.scratch / "llm"
    folder.mkdir()
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return store.commit(full("import_model-1"), folder, [], {"counts": {}, "inputs": {}})


def asked_for(folder: Path, source: str, **llm: Any) -> list[Any]:
    work = Asked(store=str(folder))
    options = JointLoopOptions(llm=LLMOptions(**llm))
    model = put_llm(Store(str(folder)), source)
    write_candidates(work, QUERIES, model, options)
    write_answers(work, QUERIES, model, options)
    write_expansions(work, QUERIES, model, options, "expand")
    write_greedy(work, QUERIES, model, options, "expand greedily")
    align(work, model, QUERIES, options)
    assert len(work._options) == 6
    return [options.get("chat") for options in work._options.values()]


@pytest.mark.parametrize(
    ("template", "llm", "chat"),
    [
        (PLAIN, {}, None),
        (PLAIN, {"date": "2026-03-09"}, None),
        (DATED, {}, {"date": "2024-07-26"}),
        (DATED, {"date": "2026-03-09"}, {"date": "2026-03-09"}),
        (PLAIN, {"template": {"enable_thinking": False}}, {"template": {"enable_thinking": False}}),
    ],
)
def test_expansions_answers_dpo_and_merge_have_it_in_their_keys(tmp_path, template, llm, chat):
    assert asked_for(tmp_path, template, **llm) == [chat] * 6


def test_of_an_adapter_it_is_the_template_of_its_model(tmp_path):
    store = Store(str(tmp_path))
    model = put_llm(store, DATED)
    folder = store.scratch / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({}))
    inputs = {"inputs": {"llm": model.model_dump()}}
    adapter = store.commit(full("dpo-1"), folder, [], {"counts": {}, **inputs})
    work = Workspace(store=str(tmp_path))
    assert work.chat(adapter, LLMOptions()) == work.chat(model, LLMOptions())
    assert work.chat(adapter, LLMOptions()).date == "2024-07-26"


def test_a_variable_that_the_template_does_not_read_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no 'thinking'; did you mean enable_thinking\?"):
        asked_for(tmp_path, PLAIN, template={"thinking": False})
