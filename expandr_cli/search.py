"""Search the corpus of the champion, or of a run, with its LLM and retriever."""

import logging

import pyarrow as pa
from rich.console import Console

from expandr_cli.terminal import notify
from expandr_core.errors import DataError
from expandr_core.records import passages_in, rows_with_ids
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.memory import search_memory
from expandr_core.runtime.runner import find, run_stage
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store
from flows.champions import chosen_run, index_spec
from flows.run_record import RunRecord
from tasks.stage import open_store


def search_corpus(
    out: Console, url: str, run_name: str, question: str, passages: int, expand: bool
) -> None:
    """Expand the question, search, and print the passages with their scores.

    Raises:
        DataError: if there is no such run or alias, or the question is empty.
    """
    from expandr_core.encoders.encode import Encoder
    from expandr_core.options.evaluation import RankingOptions
    from expandr_core.retrieval.expanded import ExpandedSearch
    from expandr_core.retrieval.index import open_index

    if not question.strip():
        raise DataError("the question is empty")
    logging.getLogger("expandr_core").setLevel(logging.WARNING)
    store = open_store(url)
    run = chosen_run(store, run_name, notify)
    expansion = _expand(store, run, question) if expand else ""
    if expansion:
        out.print(f"expansion: {expansion}\n", markup=False, highlight=False, style="dim")
    retriever = run.options.measured_retriever
    encoder = Encoder(
        store.local(run.models["retriever"]),
        run.options.device,
        retriever.encoding,
    )
    encoded = _encoded(store, run)
    folders = (store.local(part) for part in store.shards(encoded))
    index = open_index(folders, encoder.model.device.type)
    ranking = RankingOptions(depth=max(passages, run.options.evaluate.depth), identical_ids="keep")
    memory_gb = search_memory(retriever.index.search_memory_gb)
    block = pa.table(
        {
            "query_id": ["question"],
            "query": [question],
            "expansions": pa.array([[expansion] if expansion else []], pa.list_(pa.string())),
        }
    )
    search = ExpandedSearch(encoder, index, retriever.fusion, ranking, memory_gb).search
    [(_, found)] = search([block], lambda _: None)
    _print(out, store, run, found.slice(0, passages))


def _expand(store: Store, run: RunRecord, question: str) -> str:
    """Write the likeliest expansion of the question."""
    from expandr_core.generation.adapters import language_model
    from expandr_core.generation.chat_templates import chat_options, template_of
    from expandr_core.generation.engine import Request
    from expandr_core.generation.prompts import remove_preamble
    from expandr_core.generation.transformers_engine import TransformersGenerator

    options, llm = run.options.expand, run.options.llm
    paths = {
        role: store.local(part) for role, part in language_model(store, run.models["llm"]).items()
    }
    chat = chat_options(template_of(paths["llm"]), llm.template, llm.date)
    adapter = paths.get("adapter")
    generator = TransformersGenerator(
        paths["llm"], run.options.device, adapter, chat, precision=llm.precision
    )
    request = Request(options.prompt, question, "", (0,), (0.0,))
    batches = generator.generate([request], options.expansion, options.prompt.max_tokens)
    [[(_, [completion])]] = list(batches)
    return remove_preamble(completion.text, options.prompt.name)


def _encoded(store: Store, run: RunRecord) -> Artifact:
    """Find the encoded corpus of the run's retriever, in a store that may be read-only, or encode it."""
    spec = index_spec(run)
    return find(spec, store) or run_stage(spec, store, no_progress)


def _print(out: Console, store: Store, run: RunRecord, found: pa.Table) -> None:
    corpus = store.local(run.models["corpus"])
    texts = rows_with_ids(corpus, "passage_id", found["passage_id"])
    by_id = {passage.passage_id: passage for passage in passages_in(texts)}
    for row in found.to_pylist():
        passage = by_id[row["passage_id"]]
        title = f"{passage.title}: " if passage.title else ""
        out.print(
            f"{row['rank']:>3}. {row['score']:.3f}  {row['passage_id']}  {title}{passage.text}",
            markup=False,
            highlight=False,
        )
