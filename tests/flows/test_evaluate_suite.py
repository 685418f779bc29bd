"""The suite under Prefect: every system on every dataset, nothing made twice, one more dataset."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from store_keys import full
from test_joint_loop import task_runs
from tiny_models import save_retriever
from typer.testing import CliRunner

from expandr_cli.main import app
from expandr_core.errors import DataError
from expandr_core.evaluation.comparison import MeasuredDataset
from expandr_core.options.data import DataOptions
from expandr_core.options.evaluation import EvaluationOptions
from expandr_core.options.gate import GateOptions
from expandr_core.options.generation import (
    GenerationOptions,
    LLMOptions,
    PromptOptions,
    SamplingOptions,
)
from expandr_core.options.loop import JointLoopOptions
from expandr_core.options.retriever import EncodingOptions, RetrieverOptions
from expandr_core.planning.cost_model import StepCost, measured
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store
from flows.evaluate_suite import Suite, SuiteSummary, chosen_by, evaluate_suite
from flows.model_pairs import MeasuredModels, find_pairs
from flows.plan import Plan
from flows.plan_suite import plan_suite
from flows.run_record import find_run
from flows.single_stage import single_stage
from tasks.comparison import Measured
from tasks.data import Evaluation
from tasks.pipeline import Pipeline

pytestmark = pytest.mark.usefixtures("prefect_server")
WORDS = [
    *("red", "blue", "green", "bird", "fish", "tree", "song", "river", "stone", "wing"),
    *("sings", "swims", "grows"),
]


def write_dataset(folder: Path, first: int, queries: int = 6) -> Path:
    """A dataset in BEIR layout: passages of three words, queries of two of them."""
    (folder / "qrels").mkdir(parents=True)
    passages = [
        " ".join(WORDS[(first + n * step) % len(WORDS)] for step in (1, 2, 5)) for n in range(12)
    ]
    corpus = [{"_id": f"d{n}", "title": "", "text": text} for n, text in enumerate(passages)]
    asked = [
        {"_id": f"q{n}", "text": " ".join(passages[n].split()[:2])} for n in range(queries + 3)
    ]
    for name, rows in {"corpus": corpus, "queries": asked}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = ["query-id\tcorpus-id\tscore", *(f"q{n}\td{n}\t1" for n in range(queries))]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    return folder


class World(NamedTuple):
    """Two datasets, the options that name two models, and a store."""

    folder: Path
    options: JointLoopOptions
    store: str


@pytest.fixture(scope="module")
def world(tmp_path_factory, llm_folder) -> World:
    folder = tmp_path_factory.mktemp("suite")
    write_dataset(folder / "letters", 0)
    write_dataset(folder / "sf", 3)
    retriever = save_retriever(folder / "static")
    sampling = SamplingOptions(max_new_tokens=6, top_p=1.0)
    options = JointLoopOptions(
        llm=LLMOptions(model=str(llm_folder)),
        retriever=RetrieverOptions(
            model=str(retriever), encoding=EncodingOptions(similarity="cosine")
        ),
        expand=GenerationOptions(expansion=sampling, prompt=PromptOptions(max_tokens=100)),
        evaluate=EvaluationOptions(depth=100, report=False),
        device="cpu",
    )
    return World(folder, options, str(folder / "store"))


def ends_at_once(folder: Path) -> Path:
    """A model whose likeliest token always ends the text; sampled, most texts have all their tokens."""
    import torch
    from tiny_models import EOS, save_llm
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(save_llm(folder), tie_word_embeddings=False)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(0.0 if "proj" in name else 1.0)
        model.lm_head.weight.fill_(0.0)
        model.lm_head.weight[EOS] = 0.02
    model.save_pretrained(folder)
    return folder


def titled(summary: SuiteSummary) -> dict[str, Artifact]:
    return {step.title: step.artifact for step in summary.steps}


def made_by(summary: SuiteSummary) -> set[str]:
    """Return the titles of the steps that were not found in the store."""
    runs = task_runs(summary.flow_run_id, len(summary.steps))
    return {run.name for run in runs if run.state_name != "Cached"}


def run(world: World, *datasets: str, **changes: Any) -> SuiteSummary:
    values = {"options": world.options, "seeds": 2, "store": world.store, **changes}
    return evaluate_suite(datasets, **values)


@pytest.fixture(scope="module")
def first(world, prefect_server) -> SuiteSummary:
    return run(world, f"scifact={world.folder}/sf")


@pytest.fixture(scope="module")
def both(world, first) -> SuiteSummary:
    evaluate = world.options.evaluate.model_copy(update={"report": True})
    options = world.options.model_copy(update={"evaluate": evaluate})
    return run(world, f"scifact={world.folder}/sf", str(world.folder / "letters"), options=options)


def board(summary: SuiteSummary) -> Path:
    return Store(summary.store).local(summary.report)


STEPS = [
    "get the dataset {}",
    "index {} for BM25",
    "evaluate on {}: BM25",
    "encode the corpus, {}: query only",
    "evaluate on {}: query only",
    "expand the {} queries greedily, model and static",
    "expand the {} queries, model and static, seed 0",
    "expand the {} queries, model and static, seed 1",
    "evaluate on {}: + expansion, greedy",
    "evaluate on {}: + expansion, sampled, seed 0",
    "evaluate on {}: + expansion, sampled, seed 1",
    "audit on {}: + expansion, greedy",
    "audit on {}: + expansion, sampled",
]


def test_every_system_is_measured_on_the_judged_queries(first):
    expected = {step.format("scifact") for step in STEPS}
    assert made_by(first) == {
        *expected, "import the LLM", "import the retriever", "compare the systems"
    }  # fmt: skip
    expanded = titled(first)["expand the scifact queries, model and static, seed 1"]
    assert expanded.counts["texts"] == 6  # of nine queries, the judged ones
    rows = pd.read_csv(board(first) / "comparison.csv")
    assert list(rows["system"]) == [
        *("BM25", "query only", "+ expansion, greedy", "+ expansion, sampled")
    ]
    assert set(rows["queries"]) == {6}
    assert list(rows["seeds"]) == [1, 1, 1, 2]
    assert rows["ndcg_at_10_deviation"].notna().tolist() == [False, False, False, True]
    assert rows["corrected_p"].notna().tolist() == [False, False, True, True]
    assert rows["ndcg_at_10"].nunique() == 4


def test_the_seeds_write_different_texts(first):
    steps = titled(first)
    digests = {
        steps[f"expand the scifact queries, model and static, seed {seed}"].digest
        for seed in (0, 1)
    }
    assert len(digests) == 2


def test_a_second_run_finds_everything(first, world):
    again = run(world, f"scifact={world.folder}/sf")
    assert made_by(again) == set()
    assert again.report.digest == first.report.digest


def test_one_more_dataset_computes_only_itself(both):
    expected = {step.format("letters") for step in STEPS}
    assert made_by(both) == {*expected, "compare the systems"}
    rows = pd.read_csv(board(both) / "comparison.csv")
    assert list(rows["dataset"]) == ["scifact"] * 4 + ["letters"] * 4


def test_a_dataset_of_beir_is_known_by_name_wherever_it_lies(both):
    text = (board(both) / "report.md").read_text()
    assert "BEIR, out-of-domain (1 of 11)" in text
    assert "BEIR, mean of 1 of 15" in text
    assert "other datasets, mean of 1" in text
    assert "**Missing** of BEIR: msmarco," in text
    assert "BEIR, mean of all 15" not in text
    assert "| letters | + expansion, greedy" in text.partition("## Leakage")[2]


def test_the_report_is_shown_in_prefect(both):
    with get_client(sync_client=True) as client:
        key = ArtifactFilter(key=ArtifactFilterKey(any_=["suite-report"]))
        shown = client.read_artifacts(artifact_filter=key)
    page = Path(both.store, "reports", both.name, "report.md").read_text()
    assert "## Means over datasets" in page and "## Leakage" in page
    assert page in [each.data for each in shown]


def test_the_record_keeps_the_artifacts_and_is_no_run_of_the_loop(both):
    store = Store(both.store)
    record = next(each for each in store.records() if each["name"] == both.name)
    assert record["kind"] == "evaluate-suite"
    assert record["report"]["key"] == both.report.key
    assert find_run(store, "latest") is None


def test_a_suite_and_a_comparison_are_shown_with_their_verdict(both):
    for what in (both.name, both.report.key):
        shown = CliRunner().invoke(app, ["show", what, "--store", both.store])
        assert shown.exit_code == 0, shown.output
        assert "+ expansion, greedy against query only: " in shown.output
    listed = CliRunner().invoke(app, ["runs", "--store", both.store], env={"COLUMNS": "200"})
    assert "The best system" in listed.output


def test_models_can_be_keys_and_training_data_is_audited(both, world, tmp_path):
    steps = titled(both)
    folder = write_dataset(tmp_path / "law", 0, queries=8)
    (folder / "qrels" / "test.tsv").rename(folder / "qrels" / "train.tsv")
    data = DataOptions(collection=str(folder), dev_share=0.3, preference_share=0.3)
    [step] = single_stage("prepare", JointLoopOptions(data=data), store=world.store)
    prepared = step.artifact
    models = MeasuredModels(
        llm=steps["import the LLM"].key,
        retriever=steps["import the retriever"].key,
        training=(prepared.key,),
    )
    options = world.options.model_copy(
        update={"llm": LLMOptions(), "evaluate": EvaluationOptions(depth=100, greedy=False)}
    )
    found = run(world, f"{world.folder}/letters", options=options, models=models, seeds=1)
    report = json.loads((board(found) / "comparison.json").read_text())
    [audit] = report["leakage"]
    kept = int(prepared.counts["preference/examples"] + prepared.counts["retriever/examples"])
    assert kept > 0
    assert audit["query_in_training"]["queries"] == audit["passage_in_training"]["queries"] > 0
    assert audit["any"]["queries"] <= min(kept, 6)


@contextlib.contextmanager
def loop_run_with_the_models_of(both: SuiteSummary, world: World, **changed: Any) -> Iterator[None]:
    """Record a run of the loop, of some options, while a test lasts: the others know of none."""
    steps = titled(both)
    record = {
        "name": "20260101T000000-old-run",
        "flow_run_id": "",
        "store": world.store,
        "started": both.started.isoformat(),
        "finished": both.finished.isoformat(),
        "options": world.options.model_copy(update=changed).model_dump(mode="json"),
        "report": steps["compare the systems"].model_dump(),
        "best_round": 1,
        "models": {
            "llm": steps["import the LLM"].model_dump(),
            "retriever": steps["import the retriever"].model_dump(),
        },
        "steps": [],
    }
    Store(world.store).write_record(record["name"], record)
    try:
        yield
    finally:
        Path(world.store, "runs", f"{record['name']}.json").unlink()


def test_the_best_models_of_a_run_are_measured_with_its_options(both, world):
    models = MeasuredModels(runs=("2026",))
    with loop_run_with_the_models_of(both, world):
        found = run(world, f"scifact={world.folder}/sf", models=models, seeds=1)
    rows = pd.read_csv(board(found) / "comparison.csv").set_index("system")
    named, of_run = (
        rows.loc[f"{title}: + expansion, sampled"]
        for title in ("model and static", "20260101T000000-old-run, round 1")
    )
    assert named["ndcg_at_10"] == of_run["ndcg_at_10"]
    report = json.loads((board(found) / "comparison.json").read_text())
    pairs = [(step["before"], step["after"]) for step in report["contrasts"]]
    assert ("sampled", "sampled-2") in pairs and ("query-2", "sampled-2") in pairs
    with pytest.raises(DataError, match="there is no run 'nobody'"):
        run(world, f"scifact={world.folder}/sf", models=MeasuredModels(runs=("nobody",)))


def test_queries_that_chose_the_round_of_a_run_are_told(both, world):
    store, sf = Store(world.store), titled(both)["get the dataset scifact"]
    asked = pq.read_table(store.local(sf.at("queries.parquet")))
    tables = {"preference.parquet": asked.slice(0, 0), "dev_queries.parquet": asked.slice(0, 2)}
    step = {"id": ("prepare", 0, "", 0), "title": "", "artifact": put(store, "prepare-9", tables)}
    with loop_run_with_the_models_of(both, world):
        [record] = [each for each in store.records() if "old-run" in each["name"]]
        steps = [step | {"artifact": step["artifact"].model_dump()}]
        store.write_record(record["name"], record | {"steps": steps})
        [pair] = find_pairs(
            Pipeline(world.store, JointLoopOptions()), MeasuredModels(runs=("20260101",)), print
        )
    others = put(store, "dataset-9", {"queries.parquet": asked.slice(0, 0)}).at("queries.parquet")
    measured = [
        Measured(MeasuredDataset(name=name), {"": Evaluation(queries, sf, sf)})
        for name, queries in (
            ("sf", sf.at("queries.parquet")),
            ("others", others),
        )
    ]
    [said] = chosen_by(store, Suite(measured, [pair]))
    assert said.startswith(
        "2 of the 6 queries of sf are dev queries of 20260101T000000-old-run, by"
    )


def put(store: Store, key: str, tables: dict[str, pa.Table]) -> Artifact:
    folder = store.scratch / key
    folder.mkdir()
    for name, table in tables.items():
        pq.write_table(table, folder / name)
    return store.commit(full(key), folder, [], {"counts": {}})


def test_a_folder_that_is_read_as_beirs_for_its_name_is_told(world, tmp_path):
    folder = write_dataset(tmp_path / "scifact", 0)
    report = (board(run(world, f"{folder}/", seeds=1)) / "report.md").read_text()
    assert f"{folder} is read as BEIR's scifact, as it is called so; if it is another," in report
    own = (board(run(world, f"own={folder}", seeds=1)) / "report.md").read_text()
    assert "is read as" not in own and "BEIR" not in own


def test_models_learn_a_gate_on_dev_queries_and_are_measured_with_it_on_others(world, tmp_path):
    folder = write_dataset(tmp_path / "law", 0, queries=8)
    lines = (folder / "qrels" / "test.tsv").read_text().splitlines()
    for split, rows in (("dev", lines[1:5]), ("test", lines[5:])):
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join([lines[0], *rows]) + "\n")
    measure = EvaluationOptions(depth=100, greedy=False, fusion="rrf", rm3=True, report=False)
    options = world.options.model_copy(update={"evaluate": measure})
    models = MeasuredModels(gate_on=f"{folder}/")
    found = run(world, f"{folder}/", options=options, models=models)
    rows = pd.read_csv(board(found) / "comparison.csv")
    titles = ["BM25", "BM25 with RM3", "query only", "+ expansion, sampled"]
    gated = ["learned weight", "gated before generation", "ranks fused"]
    for title, said in zip(rows["system"], [*titles, *gated], strict=True):
        assert said in title
    assert list(rows["seeds"])[5:] == [2, 2]
    gate = titled(found)["learn the gate on dev"]
    assert gate.counts["queries"] == rows["queries"][0] == 4
    report = (board(found) / "report.md").read_text()
    assert "Of 4 queries with each of 2 seeds, " in report
    assert "gated before generation expands none, so it equals query only" in report
    with pytest.raises(DataError, match="what it was learned on"):
        (folder / "qrels" / "test.tsv").write_bytes((folder / "qrels" / "dev.tsv").read_bytes())
        run(world, f"{folder}/", options=options, models=models)
    off = options.model_copy(update={"gate": GateOptions(mode="off")})
    with pytest.raises(DataError, match=r"gate\.mode is 'off'"):
        run(world, f"{folder}/", options=off, models=models)


def test_no_gate_is_learned_on_a_query_that_is_measured_under_whatever_id(world, tmp_path):
    folder = write_dataset(tmp_path / "law", 0, queries=4)
    asked = (folder / "queries.jsonl").read_text()
    text = json.loads(asked.splitlines()[0])["text"]
    twin = json.dumps({"_id": "twin", "text": f" {text.upper()} "}) + "\n"
    (folder / "queries.jsonl").write_text(asked + twin)
    dev = "query-id\tcorpus-id\tscore\ntwin\td0\t1\nq6\td6\t1\n"
    (folder / "qrels" / "dev.tsv").write_text(dev)
    with pytest.raises(DataError, match=f"1 of the 2 dev queries of .* such as '{text}'"):
        run(world, f"{folder}/", models=MeasuredModels(gate_on=f"{folder}/"))


def planned(world: World, *datasets: str, **changes: Any) -> Plan:
    """Plan without making anything but what a calibration needs."""
    values = {"options": world.options, "models": MeasuredModels(), "seeds": 2}
    found: Any = plan_suite(datasets, store=world.store, **values | changes)
    return found


def by_dot(world: World) -> RetrieverOptions:
    """The options of the same retriever, searched by inner products."""
    encoding = EncodingOptions(similarity="dot")
    return world.options.retriever.model_copy(update={"encoding": encoding})


def steps_of(summary: SuiteSummary) -> list[StepCost]:
    """Return what the steps have cost that a plan is about."""
    ran = measured(Store(summary.store), summary.steps)
    return [each for each in ran if each.stage not in ("dataset", "import_model")]


def test_a_plan_has_the_steps_of_the_suite_and_learns_what_they_cost(both, world):
    datasets = f"scifact={world.folder}/sf", str(world.folder / "letters")
    before = {path.name for path in Path(world.store, "artifacts").iterdir()}
    found = planned(world, *datasets)
    assert {path.name for path in Path(world.store, "artifacts").iterdir()} == before
    ran = steps_of(both)
    assert [each.id for each in found.steps] == [each.id for each in ran]
    for each, real in zip(found.steps, ran, strict=True):
        assert each.workload == pytest.approx(real.workload, rel=0.1), each.id
    assert both.name in found.throughputs[0].source
    assert all(each.seconds > 0 for each in found.steps)


def test_a_plan_calibrates_on_samples_where_the_models_have_no_run(world, tmp_path):
    folder, options = write_dataset(tmp_path / "new", 2), world.options
    models = MeasuredModels(gate_on=f"{folder}/")
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq6\td6\t1\nq7\td7\t1\n")
    name = f"{world.options.llm.model}/"  # the same model, under a name that no run has
    options = options.model_copy(update={"llm": options.llm.model_copy(update={"model": name})})
    found = planned(world, f"{folder}/", options=options, models=models, sample=8)
    assert found.throughputs[0].source == "a calibration with 8 queries"
    made = run(world, f"{folder}/", options=options, models=models)
    assert [each.id for each in found.steps] == [each.id for each in steps_of(made)]
    assert all(each.seconds > 0 and each.bytes > 0 for each in found.steps)


def test_a_plan_of_longer_texts_than_earlier_runs_wrote_calibrates(both, world):
    sampling = world.options.expand.expansion.model_copy(update={"max_new_tokens": 7})
    longer = world.options.expand.model_copy(update={"expansion": sampling})
    options = world.options.model_copy(update={"expand": longer})
    found = planned(world, str(world.folder / "letters"), options=options, sample=8)
    assert [each.source for each in found.throughputs] == ["a calibration with 8 queries"]
    assert all(each.seconds > 0 for each in found.steps)


def test_the_plan_of_two_pairs_counts_what_they_share_once(both, world):
    twice = MeasuredModels(runs=("2026",))
    dataset = f"scifact={world.folder}/sf"
    with loop_run_with_the_models_of(both, world):
        found = planned(world, dataset, models=twice)
    alone = planned(world, dataset)
    assert {each.id for each in alone.steps} == {each.id for each in found.steps}
    assert len([each for each in found.steps if each.stage == "evaluate_bm25"]) == 1


def test_the_plan_of_two_pairs_loads_the_libraries_of_a_stage_once(both, world):
    dataset, runs = f"scifact={world.folder}/sf", MeasuredModels(runs=("2026",))
    known = planned(world, dataset).throughputs[0]
    throughputs = [
        known.model_copy(
            update={
                "stages": {
                    stage: costs.model_copy(update={"load_seconds": seconds})
                    for stage, costs in known.stages.items()
                }
            }
        )
        for seconds in (0, 100)
    ]
    with loop_run_with_the_models_of(both, world, retriever=by_dot(world)):
        without, loading = (
            planned(world, dataset, models=runs, throughput=each).steps for each in throughputs
        )
    assert len([each for each in without if each.stage == "encode"]) == 2
    more = sum(each.seconds for each in loading) - sum(each.seconds for each in without)
    assert more == pytest.approx(100 * len({each.stage for each in without}))


def test_the_command_plans_and_compares_with_what_a_suite_has_cost(both, world, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(world.options.model_dump(mode="json", exclude_defaults=True)))
    command = ["evaluate", str(config), "--datasets", f"{world.folder}/letters"]
    command += ["--store", world.store]
    for more, source in ([], "as in "), (["--calibrate"], "a calibration with 64 queries"):
        said = CliRunner().invoke(app, [*command, "--plan", *more], env={"COLUMNS": "200"})
        assert said.exit_code == 0, said.output
        assert f"Throughputs: {source}" in said.output and "evaluate_bm25" in said.output
    said = CliRunner().invoke(app, [*command, "--calibrate"])
    assert said.exit_code == 2 and "--calibrate goes with --plan" in said.output
    again = ["plan", "--run", both.name, "--store", world.store, "--calibrate", "--sample", "8"]
    said = CliRunner().invoke(app, again, env={"COLUMNS": "200"})
    assert said.exit_code == 0, said.output
    assert "time / measured" in said.output and "a calibration with 8 queries" in said.output


def test_the_command_takes_the_latest_run_if_the_config_names_no_models(both, world, tmp_path):
    (tmp_path / "config.yaml").write_text("device: cpu\n")
    command = ["evaluate", f"{tmp_path}/config.yaml", "--datasets", f"{world.folder}/letters"]
    with loop_run_with_the_models_of(both, world):
        said = CliRunner().invoke(app, [*command, "--plan", "--store", world.store])
    assert said.exit_code == 0, said.output


def test_the_command_saves_no_throughputs_of_models_that_differ_in_them(both, world, tmp_path):
    store, name, file = Store(world.store), "20260102T000000-pairs", tmp_path / "throughputs.yaml"
    [record] = [each for each in store.records() if each["name"] == both.name]
    store.write_record(name, record | {"name": name, "asked": {"runs": ["20260101"]}})
    command = ["plan", "--run", name, "--store", world.store, "--calibrate", "--sample", "8"]
    with loop_run_with_the_models_of(both, world, retriever=by_dot(world)):
        said = CliRunner().invoke(app, [*command, "--save", str(file)])
    Path(world.store, "runs", f"{name}.json").unlink()
    assert said.exit_code == 2 and "plan one pair at a time" in said.output, said.output
    assert not file.exists()


def test_tiny_models_belong_to_a_run(world):
    with pytest.raises(DataError, match=r"llm.model is 'tiny', which is built from a collection"):
        run(world, "scifact", options=JointLoopOptions())


def test_a_wrong_name_costs_nothing(world):
    with pytest.raises(DataError, match="unknown dataset 'scifakt'"):
        run(world, "scifakt")


def test_a_run_is_exported_for_trec_eval(both, tmp_path):
    import pytrec_eval

    evaluated = titled(both)["evaluate on letters: query only"]
    target = tmp_path / "letters.trec"
    command = ["export-run", evaluated.key, str(target), "--tag", "static", "--store", both.store]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    with target.open() as file:
        hits = pytrec_eval.parse_run(file)
    qrels = {f"q{n}": {f"d{n}": 1} for n in range(6)}
    measured = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(hits)
    mean = sum(each["ndcg_cut_10"] for each in measured.values()) / 6
    assert mean == pytest.approx(evaluated.counts["ndcg_at_10"])
    refused = CliRunner().invoke(app, ["export-run", "evaluate", "--store", both.store])
    assert refused.exit_code == 2


def test_the_command_prints_the_results(both, world, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(world.options.model_dump(mode="json", exclude_defaults=True)))
    datasets = f"scifact={world.folder}/sf,{world.folder}/letters"
    command = ["evaluate", str(config), "--datasets", datasets, "--seeds", "2"]
    result = CliRunner().invoke(app, [*command, "--store", world.store])
    assert result.exit_code == 0, result.output
    assert "BEIR, out-of-domain (1 of 11)" in result.output
    assert both.report.key in result.output  # the same numbers are the same artifact
    refused = CliRunner().invoke(app, [*command, "--input", "lm=x", "--store", world.store])
    assert refused.exit_code == 2
    assert "--input lm: only llm, retriever, training can be given" in refused.output


def test_a_model_that_writes_nothing_greedily_is_measured_all_the_same(world, tmp_path):
    llm = LLMOptions(model=str(ends_at_once(tmp_path / "weak")))
    options = world.options.model_copy(update={"llm": llm})
    summary = run(world, f"{world.folder}/sf", options=options, seeds=1)
    comparison = json.loads(
        (Store(world.store).local(summary.report) / "comparison.json").read_text()
    )
    scores = {row["system"]: row["ndcg_at_10"] for row in comparison["results"]}
    assert scores["greedy"] == scores["query"]
    assert any("greedily" in w and "6 of 6 texts (100 %)" in w for w in comparison["warnings"])
