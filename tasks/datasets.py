"""Check and get the datasets that are measured on."""

from collections.abc import Iterable

from expandr_core.data.catalog import Dataset
from expandr_core.errors import naming
from expandr_core.evaluation.comparison import MeasuredDataset
from expandr_core.stages import dataset as stage
from tasks.comparison import Measured
from tasks.data import Evaluation
from tasks.pipeline import Pipeline


def check_datasets(datasets: Iterable[Dataset]) -> None:
    """Check that the files of datasets are there; archives are downloaded when they are read.

    Raises:
        DataError: naming the dataset that lacks one.
    """
    for dataset in datasets:
        with naming(f"dataset {dataset.name}", OSError):
            stage.find_sources(stage.options_of(dataset))


def get_dataset(pipeline: Pipeline, dataset: Dataset) -> Measured:
    """Download or read a dataset; only its judged queries are kept."""
    options = stage.options_of(dataset, pipeline.options.data)
    made = pipeline.step(
        "dataset",
        {},
        f"get the dataset {dataset.name}",
        options=options,
        name=dataset.name,
        sources=stage.source_digests(options),
    )
    subsets = {}
    for subset in dataset.subsets or ("",):
        files = [f"{subset}/{name}.parquet".lstrip("/") for name in ("queries", "qrels", "corpus")]
        queries, qrels, corpus = (made.at(file) for file in files)
        subsets[subset] = Evaluation(queries, qrels, corpus, dataset.identical_ids)
    measured = MeasuredDataset(
        name=dataset.name,
        benchmark=dataset.benchmark,
        domain=dataset.domain,
        subsets=tuple(subsets),
    )
    return Measured(measured, subsets)
