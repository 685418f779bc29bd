"""The report at the end of a run: in the store, and in Prefect."""

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact

from expandr_core.reports.files import keep_report, place_of
from flows.run_record import Record
from tasks.pipeline import Pipeline
from tasks.progress import only_shown


def publish_report(pipeline: Pipeline, run: Record, key: str) -> None:
    """Write the report of a run that has its record, and show it in Prefect.

    The run has its results by now. Whatever keeps the report from being written is only said, and the
    tables of the comparison are shown instead.

    Args:
        pipeline: of the run.
        run: its record.
        key: of the artifact in Prefect.
    """
    if not pipeline.options.evaluate.report:
        pipeline.publish(run.report, "report.md", key)
        return
    log, store = get_run_logger(), pipeline.open()
    try:
        markdown = keep_report(store, run.name)["report.md"]
    except Exception as error:
        log.warning("the report could not be written (%s: %s); `expandr report %s` tries again",
                    type(error).__name__, error, run.name, exc_info=True)  # fmt: skip
        pipeline.publish(run.report, "report.md", key)
        return
    log.info("the report: %s", place_of(store, run.name))
    with only_shown(key):
        create_markdown_artifact(markdown, key=key, description=place_of(store, run.name))
