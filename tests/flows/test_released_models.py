"""The paper's releases in small: an adapter and a pickled retriever start a suite and a loop."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest
import torch
from anchordr_world import make_anchordr, published_config, published_weights, train_pieces
from safetensors.torch import load_file, save_file
from test_evaluate_suite import board, made_by, titled, write_dataset
from tiny_loop import OPTIONS
from tiny_models import make_tokenizer, random_adapter
from typer.testing import CliRunner

from expandr_cli.main import app
from expandr_core.errors import DataError
from expandr_core.options.evaluation import EvaluationOptions
from expandr_core.options.generation import LLMOptions
from expandr_core.options.loop import JointLoopOptions
from expandr_core.store.store import Store
from flows.evaluate_suite import evaluate_suite
from flows.joint_loop import joint_loop
from flows.model_pairs import MeasuredModels
from flows.single_stage import Inputs, single_stage

pytestmark = pytest.mark.usefixtures("prefect_server")
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
DATA = Path(os.environ.get("EXPANDR_TEST_DATA", "nowhere"))


def save_adapter(llm: Path, folder: Path) -> Path:
    """As the paper's: rank 8 on all seven layers, in bfloat16, and a base on its authors' machine."""
    random_adapter(llm, folder, 1, 8, ALL)
    weights = load_file(folder / "adapter_model.safetensors")
    halves = {name: weight.bfloat16() for name, weight in weights.items()}
    save_file(halves, folder / "adapter_model.safetensors", {"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "base_model/Meta-Llama-3-8B-Instruct"
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


class Release:
    """Folders of a base model, an adapter, a retriever, and its tokenizer; options that name them."""

    def __init__(self, folder: Path, llm: Path):
        pieces = train_pieces(folder / "pieces")
        self.retriever, self.adapter = folder / "retriever", save_adapter(llm, folder / "adapter")
        make_tokenizer().save_pretrained(self.adapter)
        model = make_anchordr(pieces)
        self.retriever.mkdir()
        (self.retriever / "config.json").write_text(json.dumps(published_config(model.sizes)))
        torch.save(published_weights(model), self.retriever / "pytorch_model.bin")
        self.values = {
            "llm": {"model": str(llm), "adapter": str(self.adapter)},
            "retriever": {
                "model": str(self.retriever),
                "allow_pickle_conversion": True,
                "tokenizer": str(pieces.parent),
                "encoding": {"similarity": "dot", "max_tokens": 128},
            },
            "expand": {"expansion": {"max_new_tokens": 6}, "prompt": {"max_tokens": 200}},
            "evaluate": {"depth": 100, "greedy": False, "similarity": "cosine"},
            "device": "cpu",
        }
        self.store = str(folder / "store")

    @property
    def options(self) -> JointLoopOptions:
        return JointLoopOptions.model_validate(self.values)


@pytest.fixture(scope="module")
def release(tmp_path_factory, llm_folder) -> Release:
    return Release(tmp_path_factory.mktemp("release"), llm_folder)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("datasets")
    return tuple(str(write_dataset(folder / name, n)) for n, name in enumerate(("one", "two")))


def evaluate(release: Release, datasets, options=None, models=None, seeds=1):
    options = options or release.options
    return evaluate_suite(
        datasets,
        options=options,
        models=models or MeasuredModels(),
        seeds=seeds,
        store=release.store,
    )


@pytest.fixture(scope="module")
def summary(release, datasets, prefect_server):
    return evaluate(release, datasets)


def test_the_releases_are_measured_on_two_datasets(summary, release):
    steps = titled(summary)
    assert steps["import the adapter"].stage == "import_adapter"
    store = Store(release.store)
    written = store.manifest(steps["expand the one queries, model + adapter and retriever"].key)
    assert written["inputs"]["adapter"]["key"] == steps["import the adapter"].key
    assert written["inputs"]["llm"]["key"] == steps["import the LLM"].key
    rows = pd.read_csv(board(summary) / "comparison.csv")
    assert list(rows["system"]) == ["BM25", "query only", "+ expansion, sampled"] * 2


def test_the_adapter_changes_the_texts(summary, release, datasets):
    values = release.values | {"llm": {"model": release.values["llm"]["model"]}}
    plain = titled(evaluate(release, datasets[:1], JointLoopOptions.model_validate(values)))
    adapted = titled(summary)["expand the one queries, model + adapter and retriever"]
    assert plain["expand the one queries, model and retriever"].digest != adapted.digest


def test_similarity_of_evaluation_alone_normalises(summary, release, datasets):
    """The cosine of a model that is trained by dot is what it gives if it is said to compare so."""
    measured = "evaluate on one: + expansion, sampled"
    evaluation = {"evaluate": {"depth": 100, "greedy": False}}
    found = {}
    for similarity in ("dot", "cosine"):
        encoding = {"encoding": {"similarity": similarity, "max_tokens": 128}}
        retriever = {"retriever": release.values["retriever"] | encoding}
        options = JointLoopOptions.model_validate(release.values | retriever | evaluation)
        found[similarity] = titled(evaluate(release, datasets[:1], options))[measured].digest
    assert titled(summary)[measured].digest == found["cosine"] != found["dot"]


def test_models_by_key_take_the_adapter_or_have_it(summary, release, datasets):
    steps = titled(summary)
    retriever = steps["import the retriever"].key
    base = MeasuredModels(llm=steps["import the LLM"].key, retriever=retriever)
    apart = MeasuredModels(llm=steps["import the adapter"].key, retriever=retriever)
    alone = JointLoopOptions.model_validate(
        release.values | {"llm": {"model": release.values["llm"]["model"]}}
    )
    for options, models in ((release.options, base), (alone, apart)):
        again = evaluate(release, datasets, options, models)
        titles = {title for title in made_by(again) if title.startswith(("expand", "import"))}
        assert not titles  # the same texts
    with pytest.raises(DataError, match=r"llm\.adapter: import_adapter-\w+ is an adapter itself"):
        evaluate(release, datasets, release.options, apart)


def test_a_stage_alone_takes_the_adapter(summary, release, datasets):
    steps = titled(summary)
    queries = steps["get the dataset one"]
    inputs = Inputs(llm=steps["import the LLM"].key, queries=f"{queries.key}/queries.parquet")
    made = single_stage("expansions", release.options, inputs, store=release.store)
    assert [step.artifact.stage for step in made] == ["import_adapter", "expand"]
    assert (
        made[1].artifact.digest
        == steps["expand the one queries, model + adapter and retriever"].digest
    )


@pytest.mark.parametrize("names", [("cranfield", "med")])
def test_the_releases_are_measured_on_real_collections(release, names, tmp_path):
    """By the command. The weights are random, so the numbers mean nothing."""
    folders = [DATA / name for name in names]
    if not all(folder.is_dir() for folder in folders):
        pytest.skip(f"EXPANDR_TEST_DATA has no {' or '.join(names)}")
    config = tmp_path / "released.yaml"
    config.write_text(json.dumps(release.values))
    command = ["evaluate", str(config), "--datasets", ",".join(map(str, folders)), "--seeds", "1"]
    result = CliRunner().invoke(app, [*command, "--store", str(tmp_path / "store")])
    assert result.exit_code == 0, result.output
    for name in names:
        assert name in result.output


# The loop


@pytest.fixture(scope="module")
def loop_options(release) -> JointLoopOptions:
    """The loop in miniature, from the releases; DPO adapts two layers, the adapter all seven."""
    return OPTIONS.model_copy(
        update={
            "llm": release.options.llm,
            "retriever": release.options.retriever,
            "evaluate": EvaluationOptions(depth=100, greedy=False, similarity="cosine"),
        }
    )


def changed(options: JointLoopOptions, group: str, **values) -> JointLoopOptions:
    return options.model_copy(update={group: getattr(options, group).model_copy(update=values)})


@pytest.mark.parametrize("merge", [False, True])
def test_the_loop_starts_from_the_adapter(release, loop_options, merge):
    record = joint_loop(options=changed(loop_options, "dpo", merge=merge), store=release.store)
    store, steps = Store(release.store), {step.id: step.artifact for step in record.steps}
    [adapter] = [found for found in steps.values() if found.stage == "import_adapter"]
    [aligned] = [found for found in steps.values() if found.stage == "dpo"]
    started = store.manifest(aligned.key)["inputs"]
    assert started["adapter"]["key"] == adapter.key
    config = json.loads((store.local(aligned) / "adapter_config.json").read_text())
    assert config["r"] == 8 + OPTIONS.dpo.lora.rank
    assert config["target_modules"] == sorted(ALL)
    begun = [found for step, found in steps.items() if step[:2] == ("expand", 0)]
    written = [store.manifest(found.key)["inputs"] for found in begun]
    assert written and all(inputs["adapter"]["key"] == adapter.key for inputs in written)
    command = ["search", "what is it?", "--run", record.name, "--store", release.store]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output


def test_an_adapter_fits_a_tiny_llm_that_the_run_builds(release, tmp_path):
    """The first run builds the LLM; an adapter of it starts the second, where the shapes fit."""
    store = str(tmp_path / "store")
    first = joint_loop(options=changed(OPTIONS, "loop", order="retriever_only"), store=store)
    [built] = [step.artifact for step in first.steps if step.artifact.stage == "tiny_llm"]
    adapter = save_adapter(Store(store).local(built), tmp_path / "adapter")
    options = changed(OPTIONS, "llm", adapter=str(adapter))
    second = joint_loop(options=options, store=store)
    stages = [step.artifact.stage for step in second.steps]
    assert stages.index("import_adapter") > stages.index("tiny_llm")
    assert "merge" in stages
    with pytest.raises(
        DataError, match=r"llm\.adapter: .* another id than in the language model's"
    ):
        wider = options.llm.model_copy(update={"adapter": str(release.adapter)})
        joint_loop(options=options.model_copy(update={"llm": wider}), store=store)


def test_what_cannot_run_is_refused_before_anything_is_made(release, loop_options, tmp_path):
    with pytest.raises(ValueError, match="a server keeps its model"):
        LLMOptions(adapter="a", engine="endpoint")
    missing = changed(loop_options, "llm", adapter=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"llm\.adapter: .*no such folder"):
        joint_loop(options=missing, store=release.store)
    wrong = changed(OPTIONS, "llm", adapter=str(tmp_path))
    with pytest.raises(DataError, match=r"llm\.adapter: .*no adapter_config\.json"):
        joint_loop(options=wrong, store=str(tmp_path / "store"))
    assert not list((tmp_path / "store").glob("artifacts/*"))
