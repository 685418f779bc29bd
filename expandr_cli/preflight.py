"""What a command checks before Prefect is there: where it writes, what it reads, and the models."""

import contextlib
import uuid
from collections.abc import Iterator

from expandr_core.data.catalog import find_datasets
from expandr_core.data.formats.pairs import pairs_files
from expandr_core.errors import DataError, first_line, naming
from expandr_core.options.distil import DEMO
from expandr_core.options.loop import JointLoopOptions
from expandr_core.runtime.child import needs_child, run_in_child
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.runner import find, run_stage
from expandr_core.stages import prepare
from expandr_core.stages.import_queries import find_file
from expandr_core.store.artifacts import Artifact, StageSpec
from expandr_core.store.run_records import REPORTS, StepId
from expandr_core.store.store import Store
from flows.ablation_lines import BASE, AblationLine, variants
from flows.evaluate_suite import check_suite_data
from flows.model_pairs import MeasuredModels, find_pairs
from flows.promotion import check_promotion
from flows.single_stage import Inputs, Stage, find_inputs
from tasks.imports import check_start
from tasks.models import check_adapter, import_models
from tasks.pipeline import Pipeline
from tasks.stage import on_this_machine, open_store


class Unobserved(Pipeline):
    """A pipeline without Prefect; what it makes before a server is there, the flow then finds."""

    def make(self, step_id: StepId, title: str, spec: StageSpec) -> Artifact:
        """Find the artifact of a stage, or make it in this process or a child of it."""
        spec, store = on_this_machine(spec), self.open()
        run = run_in_child if needs_child(spec) else run_stage
        return find(spec, store) or run(spec, store, no_progress)


def check_run(options: JointLoopOptions, store: str) -> None:
    """Check all that a run of the loop starts from; models that are named are imported.

    Raises:
        DataError: naming the option that is wrong.
    """
    check_store(store)
    check_promotion(options.promotion)
    _check_options(options, store)


def _check_options(options: JointLoopOptions, store: str) -> None:
    check_start(options)
    check_data(options)
    check_adapter(import_models(Unobserved(store, options)), options)


def check_ablations(options: JointLoopOptions, lines: tuple[AblationLine, ...], store: str) -> None:
    """Check all that the runs of an ablation start from.

    Raises:
        DataError: naming the line that is wrong, and in it the option.
    """
    check_store(store)
    for name, variant in variants(options, lines).items():
        with contextlib.nullcontext() if name == BASE else naming(f"line {name!r}"):
            _check_options(variant, store)


def check_stage(stage: Stage, options: JointLoopOptions, inputs: Inputs, store: str) -> None:
    """Check all that one stage starts from.

    Raises:
        DataError: naming the option or the input that is wrong.
    """
    check_store(store)
    pipeline = Unobserved(store, options)
    find_inputs(pipeline, stage, inputs)
    match stage:
        case "prepare":
            check_data(options)
        case "import_pairs":
            _check_pairs(options)
        case "preferences":
            import_models(pipeline, {"reward_encoder"})
        case "distil":
            _check_unlabelled(options)


def check_store(url: str) -> None:
    """Check that artifacts can be kept there."""
    with _writing(f"--store {url}", "name another folder or s3:// URL"):
        store = open_store(url)
        _probe(store, store.root)


def check_reports(store: Store) -> None:
    """Check that reports can be kept in a store, before one is drawn."""
    folder = f"{store.root}/{REPORTS}"
    with _writing(folder, "name a folder for the report"):
        _probe(store, folder)


def _probe(store: Store, folder: str) -> None:
    probe = f"{folder}/.probe-{uuid.uuid4().hex}"
    store.filesystem.makedirs(folder, exist_ok=True)
    store.filesystem.pipe_file(probe, b"")
    store.filesystem.rm_file(probe)


@contextlib.contextmanager
def _writing(what: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # of the operating system, or of a library for S3
        raise DataError(
            f"{what}: nothing can be written there ({first_line(error)}); {remedy}, or correct its "
            "permissions"
        ) from error


def check_data(options: JointLoopOptions) -> None:
    """Check that the collection, the triples, the pairs and the queries to distil with are there."""
    named = [name for name in ("collection", "triples") if getattr(options.data, name)]
    with naming(" and ".join(f"data.{name}" for name in named) or "data", OSError):
        prepare.find_sources(options.data)
    if options.data.pairs:
        _check_pairs(options)
    if options.distil.enabled:
        _check_unlabelled(options)


def _check_pairs(options: JointLoopOptions) -> None:
    with naming("data.pairs", OSError):
        pairs_files(options.data.pairs)


def _check_unlabelled(options: JointLoopOptions) -> None:
    if options.distil.queries not in ("", DEMO):
        with naming("distil.queries", OSError):
            find_file(options.distil.queries)


def check_suite(
    datasets: tuple[str, ...], options: JointLoopOptions, models: MeasuredModels, store: str
) -> None:
    """Check all that a measurement starts from; models that the options name are imported.

    Raises:
        DataError: saying what is wrong.
    """
    check_store(store)
    check_suite_data(options, find_datasets(datasets), models)
    find_pairs(Unobserved(store, options), models, lambda _: None)  # the flow says it
