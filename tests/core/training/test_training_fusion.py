"""Training as the literature does: on Query2Doc's one text, or on LLM-QE's expansion alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import retriever_world as world
from flat_options import flat
from safetensors.numpy import load_file
from test_mine import inputs as mining_inputs  # noqa: F401
from test_mine import mined

from expandr_core.options.loop import JointLoopOptions
from expandr_core.options.retriever import EncodingOptions, FusionOptions
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.runner import make_spec, run_stage
from expandr_core.stages import mine, train_retriever
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store

EXAMPLES = [
    world.example(thing, [other for other in world.TRAINED if other != thing][:4])
    for thing in world.TRAINED
]
WRITTEN = {example["query_id"]: f"tech{example['query_id'][1]}" for example in EXAMPLES}
SETTINGS = {
    "learning_rate": 0.01,
    "epochs": 2,
    "batch_size": 8,
    "encoding": EncodingOptions(max_tokens=32, similarity="dot"),
    "contrastive_temperature": 1.0,
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def trained(
    store: Store, retriever: Artifact, written: dict[str, str] | None, queries: Any, **options: Any
) -> Path:
    """Train on the queries that a function makes of the examples, with or without expansions."""
    name = str(len(store.keys()))
    rows = [example | {"query": queries(example)} for example in EXAMPLES]
    inputs = {"retriever": retriever, "examples": world.put_examples(store, f"rows-{name}", rows)}
    if written:
        texts = [(query_id, 0, text) for query_id, text in written.items()]
        inputs["expansions"] = world.put_expansions(store, f"expand-{name}", texts)
    chosen = flat(train_retriever.OPTIONS, **(SETTINGS | options))
    made = run_stage(make_spec("train_retriever", chosen, inputs, device="cpu"), store, no_progress)
    return store.local(made)


def query(example: dict[str, Any]) -> str:
    return example["query"]


def expansion(example: dict[str, Any]) -> str:
    return WRITTEN[example["query_id"]]


def both(separator: str) -> Any:
    return lambda example: f"{query(example)}{separator}{expansion(example)}"


@pytest.mark.parametrize(
    ("save", "separator"), [(world.save_static, " "), (world.save_bert, "[SEP]")]
)
def test_query2doc_trains_on_query_and_expansion_as_one_query(store, tmp_path, save, separator):
    start = world.put(store, "import-model", save(tmp_path / "start"))
    fusion = FusionOptions(method="concatenate")
    options = {"held_out_share": 0.3, "evaluation_steps": 2}
    one = trained(store, start, WRITTEN, query, fusion=fusion, **options)
    same = trained(store, start, None, both(separator), **options)
    for name in ("model.safetensors", "training_log.parquet"):
        assert (one / name).read_bytes() == (same / name).read_bytes()
    other = trained(store, start, WRITTEN, query, **options)
    assert (other / "model.safetensors").read_bytes() != (one / "model.safetensors").read_bytes()


@pytest.mark.parametrize("method", ["vector", "hyde", "concatenate"])
def test_llm_qe_trains_on_the_expansion_instead_of_the_query(store, tmp_path, method):
    start = world.put(store, "import-model", world.save_static(tmp_path / "start"))
    fusion = FusionOptions(method=method)
    one = trained(store, start, WRITTEN, query, fusion=fusion, expansion_weight=1)
    same = trained(store, start, None, expansion)
    weights = [load_file(folder / "model.safetensors") for folder in (one, same)]
    before = load_file(store.local(start) / "model.safetensors")
    for name, found in weights[0].items():  # for a static model queries and passages are alike
        np.testing.assert_allclose(found, weights[1][name], atol=1e-5)
        assert np.abs(found - before[name]).max() > 0.01


def test_the_best_step_is_that_of_the_search_although_training_fuses_otherwise(store, tmp_path):
    """Both trainings take the same steps; what is measured on the held-out queries differs."""
    start = world.put(store, "import-model", world.save_static(tmp_path / "start"))
    options = {"held_out_share": 0.4, "evaluation_steps": 3, "expansion_weight": 1}
    logs = [
        pq.read_table(
            trained(store, start, WRITTEN, query, fusion=fusion, **options) / "training_log.parquet"
        ).to_pydict()
        for fusion in (FusionOptions(), FusionOptions(expansion_weight=1))
    ]
    assert logs[0]["loss"] == logs[1]["loss"]
    assert logs[0]["dev_ndcg_at_10"] != logs[1]["dev_ndcg_at_10"]


def test_by_ranks_nothing_is_trained_or_mined_so_vectors_are_averaged():
    options = JointLoopOptions.model_validate({"retriever": {"fusion": {"method": "rrf"}}})
    assert mine.OPTIONS.of(options) == mine.OPTIONS.of(JointLoopOptions())
    assert train_retriever.OPTIONS.of(options).trained == FusionOptions()


def test_mining_expands_queries_as_training_does(store, mining_inputs):  # noqa: F811
    """LLM-QE's hard negatives are those of the expansion alone."""
    values = {"training": {"expansion_weight": 1}, "retriever": {"fusion": {"method": "vector"}}}
    options = mine.OPTIONS.of(JointLoopOptions.model_validate(values))
    assert options.fusion == FusionOptions(expansion_weight=1)
    texts = [("q12", 0, "tech1")]
    written = {"expansions": world.put_expansions(store, "expand-one", texts)}
    inputs = mining_inputs | written
    alone, mean = (
        mined(store, inputs, [world.example((1, 2))], fusion=FusionOptions(expansion_weight=w))
        for w in (1, 0.5)
    )
    as_query = world.example((1, 2)) | {"query": "tech1"}
    expected = mined(store, mining_inputs, [as_query])
    assert alone["q12"]["negative_ids"] == expected["q12"]["negative_ids"]
    assert alone["q12"]["negative_ids"] != mean["q12"]["negative_ids"]


def test_mining_by_query2doc_searches_with_one_text(store, mining_inputs):  # noqa: F811
    texts = [("q12", 0, "tech5 tech6")]
    inputs = mining_inputs | {"expansions": world.put_expansions(store, "expand-one", texts)}
    fusion = FusionOptions(method="concatenate")
    found = mined(store, inputs, [world.example((1, 2))], fusion=fusion)
    joined = world.example((1, 2)) | {"query": "lay1 lay2 tech5 tech6"}
    assert found == mined(store, mining_inputs, [joined])


@pytest.mark.parametrize("method", ["vector", "hyde", "concatenate", "rrf"])
def test_the_folder_says_by_which_method_it_is_searched_and_was_trained(store, tmp_path, method):
    start = world.put(store, "import-model", world.save_bert(tmp_path / "start"))
    options = {"fusion": FusionOptions(method=method), "epochs": 1}
    use = json.loads(
        (trained(store, start, WRITTEN, query, **options) / "expansion.json").read_text()
    )
    fusion, rule = use["fusion"], use["fusion"]["rule"]
    assert fusion.get("method", "vector") == method and fusion["expansion_weight"] == 0.5
    words = {"vector": "rest of the query's", "hyde": "1 / (n + 1)", "rrf": "1 / (60 + rank)"}
    assert words.get(method, "encode the text as a query") in rule
    assert fusion.get("separator") == ("[SEP]" if method == "concatenate" else None)
    assert ("training" in use) == (method == "rrf")
    if method == "rrf":
        assert use["training"]["expansion_weight"] == 0.5 and "method" not in use["training"]


def test_the_folder_says_with_which_weight_it_was_trained_if_that_is_another(store, tmp_path):
    start = world.put(store, "import-model", world.save_static(tmp_path / "start"))
    folder = trained(store, start, WRITTEN, query, expansion_weight=1)
    use = json.loads((folder / "expansion.json").read_text())
    assert use["fusion"]["expansion_weight"] == 0.5
    assert use["training"]["expansion_weight"] == 1


def test_a_training_weight_without_effect_is_refused_before_anything_runs():
    values: dict[str, Any] = {"training": {"expansion_weight": 0.3}}
    assert JointLoopOptions.model_validate(values).training_fusion.expansion_weight == 0.3
    values["retriever"] = {"fusion": {"method": "hyde"}}
    with pytest.raises(ValueError, match=r"training\.expansion_weight 0\.3 has no effect"):
        JointLoopOptions.model_validate(values)
    values["retriever"] = {"fusion": {"method": "rrf"}}  # trained with vectors
    assert JointLoopOptions.model_validate(values).training_fusion.method == "vector"


def test_the_control_is_the_same_however_others_fuse_their_expansions():
    values = {
        "training": {"expansion_weight": 1},
        "retriever": {"fusion": {"method": "rrf"}, "encoding": {"max_tokens": 99}},
    }
    options = JointLoopOptions.model_validate(values).without_expansions
    plain = JointLoopOptions.model_validate({"retriever": {"encoding": {"max_tokens": 99}}})
    for stage in (mine, train_retriever):
        assert stage.OPTIONS.of(options) == stage.OPTIONS.of(plain)
