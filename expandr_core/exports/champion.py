"""Export what a run kept, for users who have none of our software: models, data, cards.

llm, retriever             for transformers, PEFT and vLLM; for sentence-transformers
llm_base                   of an adapter, if its base is on no hub
distilled, gate            if the run made them
llm_training_data,         for `datasets`, in the layouts of the paper's releases
retriever_training_data
expandr.json               the prompt, and how a query and its expansion are searched with
results.json               the report's numbers, from which the cards are written
README.md, CITATION
"""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expandr_core.encoders.load import ANCHORDR
from expandr_core.errors import DataError
from expandr_core.evaluation.comparison import read_comparison
from expandr_core.exports.cards import CITATION, licence_of, write_data_card, write_model_card
from expandr_core.exports.export import export_training_data, inputs_of
from expandr_core.exports.models import export_adapter, export_llm, export_retriever, sampling_of
from expandr_core.generation.adapters import is_adapter
from expandr_core.generation.prompts import wording_of
from expandr_core.options.loop import JointLoopOptions
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store

SCHEMA = 1  # of expandr.json
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_DATA = {
    "llm_training_data": "Preference pairs, in the layout of the paper's release.",
    "retriever_training_data": "Queries with an expansion, a positive and mined negatives, in the "
    "layout of the paper's release.",
}


@dataclass(frozen=True)
class KeptModels:
    """What is exported.

    Attributes:
        name: of the registered model, or of the collection.
        run: that made it.
        options: of the run.
        models: by role: llm, retriever, and perhaps distilled and gate.
        report: of the run.
    """

    name: str
    run: str
    options: JointLoopOptions
    models: dict[str, Artifact]
    report: Artifact


def export_champion(store: Store, kept: KeptModels, folder: Path, adapter: bool) -> dict[str, int]:
    """Write everything; return the rows of each file of training data.

    Args:
        store: that has the artifacts.
        kept: what is exported.
        folder: receives the files.
        adapter: export the adapter instead of the whole language model.

    Raises:
        DataError: if there is no adapter.
    """
    comparison = read_comparison(store.local(kept.report))
    used = _use_of(store, kept)
    for file, content in (("results.json", comparison), ("expandr.json", used)):
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        (folder / file).write_text(text, encoding="utf-8")
    (folder / "CITATION").write_text(CITATION, encoding="utf-8")
    base = _export_llm(store, kept, folder, adapter)
    about = "A language model that writes expansions of queries: passages to search with."
    _card(store, kept, comparison, folder, "llm", (about, _use_llm(used, base)))
    for role in ("retriever", "distilled"):
        if role in kept.models:
            (folder / role).mkdir()
            source = store.local(kept.models[role])
            export_retriever(source, folder / role, kept.options.measured_retriever.encoding)
            about = {
                "retriever": "A dense retriever, trained to profit from expanded queries.",
                "distilled": "A dense retriever whose query encoder has learned the expansions, so "
                "that queries need no language model.",
            }[role]
            _card(store, kept, comparison, folder, role, (about, _use_retriever(folder / role)))
    if "gate" in kept.models:
        (folder / "gate").mkdir()
        shutil.copyfile(store.local(kept.models["gate"]) / "gate.json", folder / "gate/gate.json")
    written = export_training_data(store, kept.models["llm"], kept.models["retriever"], folder)
    for name in {path.partition("/")[0] for path in written}:
        files = [path.partition("/")[2] for path in written if path.startswith(f"{name}/")]
        splits = (
            {"train": files}
            if name.startswith("retriever")
            else {
                {"train": "train", "dev": "validation"}[file.removesuffix(".json")]: [file]
                for file in files
            }
        )
        write_data_card(folder / name, f"{kept.name}-{name}", _DATA[name], kept.run, splits)
    _write_readme(kept, comparison, folder)
    return written


def uploads(kept_name: str, folder: Path) -> list[str]:
    """Return the commands that would upload the parts of an export; nobody runs them here."""
    parts = [part for part in sorted(folder.iterdir()) if (part / "README.md").is_file()]
    return [
        f"hf upload YOUR_NAME/{kept_name}-{part.name} {part} . --repo-type "
        + ("dataset" if part.name in _DATA else "model")
        for part in parts
    ]


def _export_llm(store: Store, kept: KeptModels, folder: Path, adapter: bool) -> str:
    """Export the language model, or its adapter; return the name of the base of an adapter, or ""."""
    llm, options = kept.models["llm"], kept.options
    (folder / "llm").mkdir()
    if not adapter:
        export_llm(store.local(llm), folder / "llm", options)
        return ""
    inputs = inputs_of(store, llm)
    trained = llm if is_adapter(llm) else inputs.get("adapter")
    if not trained:
        raise DataError(f"{llm.key} has no adapter: the run left the LLM as it was; omit --adapter")
    base, name = store.local(inputs["llm"]), options.llm.model
    if not _HUB_NAME.fullmatch(name) or Path(name).exists():
        name = "llm_base"
        (folder / name).mkdir()
        export_llm(base, folder / name, options)
    export_adapter(base, store.local(trained), name, folder / "llm", options)
    return name


def _use_of(store: Store, kept: KeptModels) -> dict[str, Any]:
    """Return what a user of the models has to know beside them."""
    options = kept.options
    retriever = options.measured_retriever
    return {
        "schema": SCHEMA,
        "run": kept.run,
        "artifacts": {role: {"key": a.key, "digest": a.digest} for role, a in kept.models.items()},
        "prompt": wording_of(options.expand.prompt),
        "longest_prompt": options.expand.prompt.max_tokens,
        "sampling": sampling_of(options) | {"samples": options.expand.expansion.samples},
        "fusion": retriever.fusion.model_dump(mode="json"),
        "encoding": retriever.encoding.model_dump(mode="json"),
        "llm_precision": options.llm.precision,
    }


def _card(
    store: Store,
    kept: KeptModels,
    comparison: dict[str, Any],
    folder: Path,
    role: str,
    texts: tuple[str, str],
) -> None:
    model = kept.models[role]
    of_llm = role == "llm"
    base = kept.options.llm.model if of_llm else kept.options.retriever.model
    metadata = licence_of(store, model, "llm" if of_llm else "retriever")
    metadata |= (
        {"base_model": base} if _HUB_NAME.fullmatch(base) and not Path(base).exists() else {}
    )
    metadata |= {
        "library_name": "transformers" if of_llm else "sentence-transformers",
        "pipeline_tag": "text-generation" if of_llm else "sentence-similarity",
    }
    if (folder / role / "adapter_config.json").is_file():
        metadata["library_name"] = "peft"
    name = f"{kept.name}-{role}"
    write_model_card(folder / role, name, model, kept.run, texts, comparison, **metadata)


def _use_llm(used: dict[str, Any], base: str) -> str:
    loader, kind = (
        ("peft", "AutoPeftModelForCausalLM") if base else ("transformers", "AutoModelForCausalLM")
    )
    return f"""\
from {loader} import {kind}
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("llm")
model = {kind}.from_pretrained("llm")
prompt = {used["prompt"]!r}.replace("{{query}}", "Your question?")
turn = [{{"role": "user", "content": prompt}}]
inputs = tokenizer.apply_chat_template(
    turn, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
text = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]  # samples, as measured
print(tokenizer.decode(text, skip_special_tokens=True))
# vLLM casts float32 to 16 bits unless told otherwise: LLM("llm", dtype="float32")"""


def _use_retriever(folder: Path) -> str:
    modules = (folder / "modules.json").read_text(encoding="utf-8")
    load = "from sentence_transformers import SentenceTransformer\n\n"
    model = f'SentenceTransformer("{folder.name}")'
    if ANCHORDR in modules:
        load = "from pathlib import Path\n\n"
        load += "from expandr_core.encoders.load import load_sentence_model\n\n"
        model = f'load_sentence_model(Path("{folder.name}"), "cpu")'
    return f"""\
{load}model = {model}
queries = model.encode_query(["Your question?"])
passages = model.encode_document(["A passage, or an expansion of the query."])
print(model.similarity(queries, passages))"""


def _write_readme(kept: KeptModels, comparison: dict[str, Any], folder: Path) -> None:
    """Write what the folder holds; each part has a card of its own."""
    parts = ", ".join(f"`{part.name}`" for part in sorted(folder.iterdir()) if part.is_dir())
    lines = [
        f"# {kept.name}",
        "",
        f"What the run {kept.run} of ExpandR on Prefect kept: {parts}. "
        "Each folder is for the library that its card names. `expandr.json` says how a query and its "
        "expansion are used together, `results.json` has all numbers.",
        "",
        " ".join(comparison["verdict"]["sentences"]),
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")
