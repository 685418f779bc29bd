"""Get the datasets that are measured on."""

from dataclasses import dataclass

from expandr_core.data.catalog import Dataset
from expandr_core.options.data import DataOptions
from expandr_core.stages import dataset as stage
from tasks.data import Evaluation
from tasks.stage import Workspace


@dataclass(frozen=True)
class MeasuredOn:
    """A dataset, and what is searched in it: its forums by name, or itself under the name ""."""

    dataset: Dataset
    parts: dict[str, Evaluation]


def get_dataset(work: Workspace, dataset: Dataset, options: DataOptions) -> MeasuredOn:
    """Download or read a dataset; only its judged queries are kept."""
    resolved = stage.options_of(dataset, options.bad_rows)
    title = f"get the dataset {dataset.name}"
    made = work.make(title, "dataset", resolved, sources=stage.source_digests(resolved))
    parts = {}
    for part in dataset.forums or [""]:
        files = [f"{part}/{name}.parquet".lstrip("/") for name in ("queries", "qrels", "corpus")]
        queries, qrels, corpus = (made.at(file) for file in files)
        parts[part] = Evaluation(queries, qrels, corpus, dataset.identical_ids)
    return MeasuredOn(dataset, parts)
