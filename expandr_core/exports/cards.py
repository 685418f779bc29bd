"""Cards of exported models and data: what they are, what they reached, how to use them.

Every number is copied from the report's comparison.json, which the export has as results.json.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard import metadata_load

from expandr_core.evaluation.comparison import titles_of
from expandr_core.evaluation.metrics import MEASURES
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store

SHOWN = ("ndcg_at_10", "recall_at_100")
CITATION = """\
@inproceedings{yao2025expandr,
  title     = {{ExpandR}: Teaching Dense Retrievers Beyond Queries with {LLM} Guidance},
  author    = {Yao, Sijia and Huang, Pengcheng and Liu, Zhenghao and Gu, Yu and Yan, Yukun and
               Yu, Shi and Yu, Ge},
  booktitle = {Proceedings of the 2025 Conference on Empirical Methods in Natural Language Processing},
  year      = {2025},
  pages     = {19036--19054},
  doi       = {10.18653/v1/2025.emnlp-main.963}
}
"""
_MODEL = """\
---
{{ card_data }}
---

# {{ name }}

{{ about }}

Made by ExpandR on Prefect in the run {{ run }}, from `{{ key }}` with the content digest `{{ digest }}`.

## Use

```python
{{ use }}
```

## Results

{{ table }}

{{ verdict }}

## Citation

```bibtex
{{ citation }}```
"""
_DATA = """\
---
{{ card_data }}
---

# {{ name }}

{{ about }} Made by ExpandR on Prefect in the run {{ run }}.

```python
from datasets import load_dataset

load_dataset("{{ folder }}")
```
"""


def write_model_card(
    folder: Path,
    name: str,
    artifact: Artifact,
    run: str,
    texts: tuple[str, str],
    comparison: Mapping[str, Any],
    **metadata: Any,
) -> None:
    """Write the card of a model, over that of its base.

    Args:
        folder: of the exported model.
        name: of it.
        artifact: that was exported.
        run: that measured it.
        texts: what it is, in a sentence or two, and a program that uses it.
        comparison: comparison.json of the run.
        metadata: more of ModelCardData, such as `license` or `base_model`.
    """
    rows, titles = kept_rows(comparison), titles_of(dict(comparison))
    results = [
        EvalResult(
            task_type="text-retrieval",
            dataset_type=name.rpartition("-")[0],
            dataset_name=name.rpartition("-")[0],
            dataset_split=row["dataset"],
            metric_type=measure,
            metric_name=f"{MEASURES[measure].title}, {titles[row['system']]}",
            metric_value=row[measure],
        )
        for row in rows
        for measure in SHOWN
    ]
    card = ModelCard.from_template(
        ModelCardData(model_name=name, eval_results=results, tags=["expandr"], **metadata),
        template_str=_MODEL,
        name=name,
        about=texts[0],
        use=texts[1],
        run=run,
        key=artifact.key,
        digest=artifact.digest,
        table=_table(rows, titles),
        verdict=" ".join(comparison["verdict"]["sentences"]),
        citation=CITATION,
    )
    card.save(folder / "README.md")


def write_data_card(
    folder: Path, name: str, about: str, run: str, splits: Mapping[str, list[str]]
) -> None:
    """Write the card of a data set, which says what `datasets` loads as which split."""
    files = [{"split": split, "path": path} for split, path in splits.items()]
    configs = [{"config_name": "default", "data_files": files}]
    card = DatasetCard.from_template(
        DatasetCardData(pretty_name=name, tags=["expandr"], configs=configs),
        template_str=_DATA,
        name=name,
        folder=folder.name,
        about=about,
        run=run,
    )
    card.save(folder / "README.md")


def kept_rows(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the results of the query alone at the start, and of all that is kept."""
    kept = comparison["kept"]
    shown = ("query", kept["alone"], kept["expanded"], kept.get("distilled")) if kept else ()
    return [row for row in comparison["results"] if row["system"] in shown]


def _table(rows: Sequence[dict[str, Any]], titles: Mapping[str, str]) -> str:
    lines = [["system", "split", *(MEASURES[measure].title for measure in SHOWN)]]
    lines.append(["---"] * len(lines[0]))
    for row in rows:
        scores = [f"{row[measure]:.4f}" for measure in SHOWN]
        lines.append([titles[row["system"]], row["dataset"], *scores])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def licence_of(store: Store, model: Artifact, role: str) -> dict[str, Any]:
    """Return the licence that a model has from its base, by the names of ModelCardData.

    Args:
        store: that has the artifacts.
        model: whose inputs are followed to the model that it began with.
        role: of that input, "llm" or "retriever".
    """
    while inputs := store.manifest(model.key).get("inputs", {}).get(role):
        model = Artifact(**inputs)
    if model.stage.startswith("tiny_"):
        return {"license": "apache-2.0"}  # trained from scratch, by this software
    path = store.local(model) / "README.md"
    said: dict[str, Any] = (metadata_load(path) if path.is_file() else None) or {}
    return {
        name: said[name] for name in ("license", "license_name", "license_link") if name in said
    }
