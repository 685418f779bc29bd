"""Search the corpus of the champion, or of a run, with its LLM, retriever and, if it has one, gate."""

import logging
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
from rich.console import Console

from expandr_cli.terminal import notify
from expandr_core.encoders.encode import Encoder
from expandr_core.errors import DataError
from expandr_core.options.evaluation import RankingOptions
from expandr_core.options.retriever import FusionOptions
from expandr_core.records import passages_in, rows_with_ids
from expandr_core.retrieval.expanded import ExpandedSearch
from expandr_core.retrieval.gate import Gate, read_gate
from expandr_core.retrieval.gate_features import describe_after, describe_before, encode_apart
from expandr_core.retrieval.index import Index, open_index
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.memory import search_memory
from expandr_core.runtime.runner import find, run_stage
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store
from flows.champions import chosen_run, index_spec
from flows.run_record import RunRecord
from tasks.stage import open_store


def search_corpus(
    out: Console, url: str, run_name: str, question: str, passages: int, expand: bool, gated: bool
) -> None:
    """Expand the question, unless the run's gate is against it, search, and print what is found.

    Raises:
        DataError: if there is no such run or alias, or the question is empty.
    """
    if not question.strip():
        raise DataError("the question is empty")
    logging.getLogger("expandr_core").setLevel(logging.WARNING)
    store = open_store(url)
    run = chosen_run(store, run_name, notify)
    search = Search(out, store, run, question, passages)
    if expand and gated and "gate" in run.models:
        found = search.gated(read_gate(store.local(run.models["gate"])))
    elif expand:
        found = search.expanded(run.options.retriever.fusion.expansion_weight)
    else:
        found = search.alone
    _print(out, store, run, found.slice(0, passages))


@dataclass(frozen=True)
class Search:
    """A search for one question; the LLM writes, and models are loaded, only if need be.

    Attributes:
        out: shows the expansion, and what the gate decides.
        store: of the run.
        run: whose models search.
        question: that is searched for.
        passages: to find, at least.
    """

    out: Console
    store: Store
    run: RunRecord
    question: str
    passages: int

    def gated(self, gate: Gate) -> pa.Table:
        """Return the run of the question with its expansion, or alone, as the gate decides."""
        if not gate.needs_text:
            features = describe_before(self.block(""), self.alone)
            if not gate.expands(features)[0]:
                self._say("gate: searched with the question alone; 1 call of the LLM saved")
                return self.alone
        found = self.expanded(gate.weight)
        if gate.policy == "learned" and gate.needs_text and self.expansion:
            block = self.block(self.expansion)
            encoded = encode_apart(self.encoder, block)
            if not gate.expands(describe_after(block, self.alone, found, encoded))[0]:
                self._say("gate: searched with the question alone; the expansion is not used")
                return self.alone
        return found

    @cached_property
    def alone(self) -> pa.Table:
        """The run of the question alone."""
        return self._search("", 0)

    def expanded(self, weight: float) -> pa.Table:
        """Return the run of the question with its expansion, which may be empty."""
        return self._search(self.expansion, weight) if self.expansion else self.alone

    @cached_property
    def expansion(self) -> str:
        """The likeliest expansion."""
        written = _expand(self.store, self.run, self.question)
        if written:
            self._say(f"expansion: {written}\n")
        return written

    @cached_property
    def encoder(self) -> Encoder:
        """The retriever's encoder."""
        options, folder = self.run.options, self.store.local(self.run.models["retriever"])
        return Encoder(folder, options.device, options.measured_retriever.encoding)

    def block(self, expansion: str) -> pa.Table:
        """Return the question as a table of one row, as a search takes it."""
        texts = pa.array([[expansion] if expansion else []], pa.list_(pa.string()))
        return pa.table({"query_id": ["question"], "query": [self.question], "expansions": texts})

    def _say(self, text: str) -> None:
        self.out.print(text, markup=False, highlight=False, style="dim")

    def _search(self, expansion: str, weight: float) -> pa.Table:
        options, retriever = self.run.options, self.run.options.measured_retriever
        depth = max(self.passages, options.evaluate.depth)
        fusion = FusionOptions(
            expansion_weight=weight, method=retriever.fusion.method if weight else "vector"
        )
        search = ExpandedSearch(
            self.encoder,
            self._index,
            fusion,
            RankingOptions(depth=depth, identical_ids="keep"),
            search_memory(retriever.index.search_memory_gb),
        )
        [(_, found)] = search.search([self.block(expansion)], lambda _: None)
        return found

    @cached_property
    def _index(self) -> Index:
        encoded = _encoded(self.store, self.run)
        folders = (self.store.local(part) for part in self.store.shards(encoded))
        return open_index(folders, self.encoder.model.device.type)


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
