"""What is exported works in a Python that has none of our software, and says what the report says."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import ModelCard
from store_keys import full
from typer.testing import CliRunner

from expandr_cli.main import app
from expandr_core.encoders.encode import Encoder
from expandr_core.evaluation.comparison import read_comparison
from expandr_core.generation.engine import Request
from expandr_core.generation.transformers_engine import TransformersGenerator
from expandr_core.options.generation import SamplingOptions
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store

TEXTS = ["what is it for?", "a moth that lives in the north " * 40]
MEASURED = ("ndcg_at_10", "recall_at_100")
PLAIN = """
import json, sys
sys.modules["expandr_core"] = None  # as if it were not installed
from datasets import load_dataset
from peft import PeftModel
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer

texts = json.loads(sys.argv[1])
retriever = SentenceTransformer("whole/retriever", device="cpu")
said = {"queries": retriever.encode_query(texts).tolist(),
        "passages": retriever.encode_document(texts).tolist(),
        "similarity": retriever.similarity_fn_name}
prompt = json.load(open("whole/expandr.json"))["prompt"].replace("{query}", texts[0])
for name in ("whole", "adapter"):
    model = AutoModelForCausalLM.from_pretrained("whole/llm" if name == "whole" else "adapter/llm_base")
    if name == "adapter":
        model = PeftModel.from_pretrained(model, "adapter/llm")
    tokenizer = AutoTokenizer.from_pretrained(f"{name}/llm")
    turn = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(
        turn, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = model.generate(**ids, do_sample=False)[0, ids["input_ids"].shape[1]:]
    said[name] = tokenizer.decode(made, skip_special_tokens=True)
pairs = load_dataset("whole/llm_training_data", cache_dir="cache")
said["pairs"] = {split: len(rows) for split, rows in pairs.items()}
rows = load_dataset("whole/retriever_training_data", cache_dir="cache")["train"]
said["rows"] = [rows.num_rows, *rows.column_names]
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def exported(first, tmp_path_factory) -> Path:
    """The models of the first run, once with the whole LLM, and once with the adapter and more roles."""
    folder = tmp_path_factory.mktemp("exported")
    store = Store(str(shutil.copytree(first.record.store, folder / "store")))
    export(store, first.record.name, folder / "whole")
    (store.scratch / "gate").mkdir()
    (store.scratch / "gate/gate.json").write_text("{}")
    gate = store.commit(full("gate-1"), store.scratch / "gate", [], {"counts": {}})
    more = {"gate": gate, "distilled": first.record.models["retriever"]}
    run = first.record.model_copy(
        update={"name": "20990101T000000-more", "models": first.record.models | more}
    )
    store.write_record(run.name, run.model_dump(mode="json"))
    export(store, run.name, folder / "adapter", "--adapter")
    return folder


def export(store: Store, run: str, folder: Path, *more: str) -> None:
    """Export the champion where there is none."""
    command = ["export", "champion", str(folder), *more, "--store", store.url]
    said = CliRunner().invoke(app, command, env={"COLUMNS": "300"})
    assert said.exit_code == 0, said.output
    assert f"no champion in {store.url}; using the latest run, {run}" in said.output
    assert f"hf upload YOUR_NAME/demo-llm {folder / 'llm'} . --repo-type model" in said.output


def test_without_a_folder_nothing_is_exported(first, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = CliRunner().invoke(app, ["export", "latest", "--store", first.record.store])
    assert ran.exit_code == 2 and not list(tmp_path.iterdir())


def test_what_else_a_run_kept_is_exported_too(exported):
    assert {each.name for each in (exported / "adapter").iterdir()} == {
        *("llm", "llm_base", "retriever", "distilled", "gate", "README.md", "CITATION"),
        *("llm_training_data", "retriever_training_data", "expandr.json", "results.json"),
    }
    assert (exported / "adapter/gate/gate.json").read_text() == "{}"
    name = "model.safetensors"
    models = [
        (exported / f"adapter/{role}" / name).read_bytes() for role in ("retriever", "distilled")
    ]
    assert models[0] == models[1] == (exported / "whole/retriever" / name).read_bytes()


def test_plain_libraries_give_the_same_vectors_and_texts(exported, first):
    store = Store(first.record.store)
    models, options = first.record.models, first.record.options
    ran = subprocess.run(
        [sys.executable, "-I", "-c", PLAIN, json.dumps(TEXTS)],
        cwd=exported, capture_output=True, text=True, env={"HF_HUB_OFFLINE": "1", "PATH": ""},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout.splitlines()[-1])

    encoder = Encoder(store.local(models["retriever"]), "cpu", options.retriever.encoding)
    assert np.allclose(said["queries"], encoder.encode_queries(TEXTS, raw=True), atol=1e-6)
    assert np.allclose(said["passages"], encoder.encode_passages(TEXTS, raw=True), atol=1e-6)
    assert said["similarity"] == "cosine" and encoder.normalize

    generator = TransformersGenerator(store.local(models["llm"]), "cpu")
    request = Request(options.expand.prompt, TEXTS[0], "", (0,), (0.0,))
    sampling = SamplingOptions(max_new_tokens=options.expand.expansion.max_new_tokens)
    [[(_, [completion])]] = list(generator.generate([request], sampling, 400))
    assert completion.text and said["whole"] == said["adapter"] == completion.text

    pairs = first.artifact("pairs", 1).counts
    assert said["pairs"] == {"train": pairs["pairs/train"], "validation": pairs["pairs/dev"]}
    assert said["rows"] == [18, "query", "pseudo_doc", "pos", "neg"]


def test_every_number_of_a_card_is_in_the_report(exported, first):
    comparison = read_comparison(Store(first.record.store).local(first.record.report))
    assert json.loads((exported / "whole/results.json").read_text()) == comparison
    scores = {
        (row["system"], m): row[m] for row in comparison["results"] for m in row if m in MEASURED
    }
    for part in ("whole/llm", "whole/retriever", "adapter/llm"):
        card = ModelCard.load(exported / part / "README.md")
        results = card.data.eval_results
        assert len(results) == 6 and {each.metric_value for each in results} <= set(scores.values())
        table = re.findall(r"^\|.*\| test \| (\S+) \| (\S+) \|$", card.content, re.MULTILINE)
        assert len(table) == 3
        assert {float(cell) for row in table for cell in row} <= {
            round(s, 4) for s in scores.values()
        }
        assert card.data.license == "apache-2.0" and "yao2025expandr" in card.content
    assert ModelCard.load(exported / "adapter/llm/README.md").data.library_name == "peft"


def test_a_licence_comes_from_the_base(tmp_path):
    from expandr_core.exports.cards import licence_of

    store = Store(str(tmp_path / "store"))

    def put(key: str, text: str, inputs: dict[str, Artifact]) -> Artifact:
        folder = store.scratch / key
        folder.mkdir(parents=True)
        (folder / "README.md").write_text(text)
        listed = {role: each.model_dump() for role, each in inputs.items()}
        return store.commit(f"{key}-{'0' * 20}", folder, [], {"counts": {}, "inputs": listed})

    base = put("import_model", "---\nlicense: gemma\nlanguage: en\n---\n# Gemma", {})
    merged = put("merge", "", {"llm": base})
    assert licence_of(store, merged, "llm") == {"license": "gemma"}
    assert licence_of(store, put("import_adapter", "", {}), "llm") == {}


def test_mteb_measures_the_export_as_the_report_does(exported, first, tmp_path):
    """Run the program of docs/models.md."""
    pytest.importorskip("mteb")
    prepared = Store(first.record.store).local(first.artifact("prepare"))
    names = {"corpus": {"passage_id": "_id"}, "test_queries": {"query_id": "_id", "query": "text"}}
    (tmp_path / "qrels").mkdir()
    for name, renamed in names.items():
        rows = pd.read_parquet(prepared / f"{name}.parquet").rename(columns=renamed)
        path = tmp_path / f"{name.removeprefix('test_')}.jsonl"
        rows.to_json(path, orient="records", lines=True)
    qrels = pd.read_parquet(prepared / "test_qrels.parquet")
    qrels.columns = ["query-id", "corpus-id", "score"]
    qrels.to_csv(tmp_path / "qrels/test.tsv", sep="\t", index=False)
    page = (Path(__file__).parents[2] / "docs/models.md").read_text()
    [program] = re.findall(r"```python\n(.*?import mteb.*?)```", page, re.DOTALL)
    known = {"FOLDER": str(tmp_path), "MODEL": str(exported / "whole/retriever")}
    exec(program, known)
    comparison = json.loads((exported / "whole/results.json").read_text())
    alone = comparison["kept"]["alone"]
    [row] = [row for row in comparison["results"] if row["system"] == alone]
    assert known["result"].get_score() == pytest.approx(row["ndcg_at_10"], abs=1e-5)
