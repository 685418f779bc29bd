"""Search the corpus of the champion, or of a run, with its LLM, retriever and, if it has one, gate."""

from rich.console import Console

from expandr_cli.terminal import notify, printable
from expandr_core.errors import DataError
from expandr_core.records import passages_in, rows_with_ids
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.runner import find, run_stage
from expandr_core.serving.answers import Answer, Asked, Mode, answer, checked
from expandr_core.serving.opened import Opened, Served
from expandr_core.serving.writer import Writer
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store
from flows.champions import chosen_run, index_spec
from flows.run_record import RunRecord
from tasks.stage import open_store


def search_corpus(
    out: Console, url: str, run_name: str, question: str, passages: int, mode: Mode
) -> None:
    """Search as the mode says, and print what is found.

    "distilled" searches with the query alone if the run has no distilled query encoder.

    Raises:
        DataError: if there is no such run or alias, or the question is empty.
    """
    try:
        checked(question)
    except ValueError as error:
        raise DataError(f"the question cannot be searched with: {error}") from error
    store = open_store(url)
    run = chosen_run(store, run_name, notify)
    writer = Writer(store, run.models["llm"], run.options, None, {})
    opened = Opened(store, served(store, run), writer)
    if mode == "distilled" and not opened.student:
        mode = "alone"
    [found] = answer(opened, [Asked(question, passages, mode)])
    if mode == "distilled":
        out.print("searched with the distilled query encoder", style="dim")
    print_answer(out, opened, found)


def served(store: Store, run: RunRecord, model: str = "", version: int = 0) -> Served:
    """Return what a run kept, as it is opened to be searched."""
    index = _encoded(store, run)
    return Served(model, version, run.name, run.options, run.models, index)


def _encoded(store: Store, run: RunRecord) -> Artifact:
    """Find the encoded corpus of the run's retriever, in a store that may be read-only, or encode it."""
    spec = index_spec(run)
    return find(spec, store) or run_stage(spec, store, no_progress)


def print_answer(out: Console, opened: Opened, found: Answer) -> None:
    """Print the expansion, what the gate has decided, and the hits."""
    said = {
        "not written": "1 call of the LLM saved",
        "not used": "the expansion is not used",
    }
    lines = [f"expansion: {found.expansion}\n"] if found.expansion else []
    if found.decision in said:
        lines.append(f"gate: searched with the question alone; {said[found.decision]}")
    for line in lines:
        out.print(printable(line), highlight=False, style="dim")
    corpus = opened.store.local(opened.served.models["corpus"])
    texts = rows_with_ids(corpus, "passage_id", found.hits["passage_id"])
    by_id = {passage.passage_id: passage for passage in passages_in(texts)}
    for row in found.hits.to_pylist():
        passage = by_id[row["passage_id"]]
        title = f"{passage.title}: " if passage.title else ""
        out.print(
            printable(
                f"{row['rank']:>3}. {row['score']:.3f}  {row['passage_id']}  {title}{passage.text}"
            ),
            highlight=False,
        )
