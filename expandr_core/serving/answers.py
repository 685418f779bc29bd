"""Questions that are answered together: with their expansions, as the gate decides, or without."""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import pyarrow as pa

from expandr_core.encoders.encode import Encoder
from expandr_core.retrieval.gate import Gate
from expandr_core.retrieval.gate_features import describe_after, describe_before, encode_apart
from expandr_core.retrieval.run_fusion import spans
from expandr_core.serving.opened import Opened, required

Mode = Literal["auto", "expanded", "alone", "distilled"]
Decision = Literal["", "expanded", "not written", "not used"]
Hits = dict[int, pa.Table]  # by question


class Asked(NamedTuple):
    """A question.

    Attributes:
        query: its text.
        passages: how many to find.
        mode: "auto" asks the gate, and expands if there is none; "alone" searches without an
            expansion, "distilled" with the distilled query encoder instead.
        seed: of a sampled expansion; None for the likeliest one.
        compare: whether to search with the query alone, too.
    """

    query: str
    passages: int
    mode: Mode = "auto"
    seed: int | None = None
    compare: bool = False


class Answer(NamedTuple):
    """What is found.

    Attributes:
        hits: the run of the question (see RUN).
        alone: that of the query alone, if it was asked for.
        expansion: that was written; "" if none was.
        remembered: whether it had been written before.
        decision: of the gate: whether the query is searched with its expansion; if not, whether this
            was known before it was written. "" if there is no gate, or it was not asked.
    """

    hits: pa.Table
    alone: pa.Table | None
    expansion: str
    remembered: bool
    decision: Decision


def checked(question: str) -> str:
    """Return a text that can be searched with.

    Raises:
        ValueError: if it is none.
    """
    if not question.strip():
        raise ValueError("it is empty")
    if any("\ud800" <= each <= "\udfff" for each in question):
        raise ValueError("it has halves of characters (surrogates)")
    return question


def answer(opened: Opened, asked: Sequence[Asked]) -> list[Answer]:
    """Answer questions together.

    Raises:
        DataError: if a question asks for a model that there is not.
    """
    least, found = opened.served.options.evaluate.depth, {}
    for depth in {max(each.passages, least) for each in asked}:  # ranks are fused to a depth
        rows = [row for row, each in enumerate(asked) if max(each.passages, least) == depth]
        answers = _Together(opened, [asked[row] for row in rows], depth).answers()
        found |= dict(zip(rows, answers, strict=True))
    return [found[row] for row in range(len(asked))]


class _Together:
    """Questions that are answered by rankings of one depth; each is known by its number."""

    def __init__(self, opened: Opened, asked: list[Asked], depth: int):
        self._opened, self._asked, self._depth = opened, asked, depth
        self._texts: dict[int, str] = {}  # expansions
        self._remembered: set[int] = set()
        self._found_alone: Hits = {}
        self._decisions: dict[int, Decision] = {}

    def answers(self) -> list[Answer]:
        """Return the answers in the order of the questions."""
        gate, options = self._opened.gate, self._opened.served.options
        gated = self._of("auto") if gate else []
        plain = [*self._of("expanded"), *([] if gate else self._of("auto"))]
        if gate:
            gated = self._let_in(gate, gated)
        self._write([*plain, *gated])
        hits = self._search(self._opened.encoder, plain, options.retriever.fusion.expansion_weight)
        if gate:
            hits |= self._kept(gate, self._search(self._opened.encoder, gated, gate.weight))
        if rows := self._of("distilled"):
            student = required(self._opened.student, "a distilled query encoder")
            hits |= self._search(student, rows, 0)
        others = [row for row in range(len(self._asked)) if row not in hits]
        hits |= self._alone(others)
        compared = self._alone(row for row, each in enumerate(self._asked) if each.compare)
        return [
            Answer(
                hits[row].slice(0, each.passages),
                compared[row].slice(0, each.passages) if each.compare else None,
                self._texts.get(row, ""),
                row in self._remembered,
                self._decisions.get(row, ""),
            )
            for row, each in enumerate(self._asked)
        ]

    def _of(self, mode: Mode) -> list[int]:
        return [row for row, each in enumerate(self._asked) if each.mode == mode]

    def _let_in(self, gate: Gate, rows: list[int]) -> list[int]:
        """Return the questions whose expansions are to be written."""
        for row in rows:
            self._decisions[row] = "expanded"
        if gate.needs_text or not rows:
            return rows
        alone = pa.concat_tables(self._alone(rows).values())
        expands = gate.expands(describe_before(self._block(rows), alone)).tolist()
        for row, own in zip(rows, expands, strict=True):
            if not own:
                self._decisions[row] = "not written"
        return [row for row, own in zip(rows, expands, strict=True) if own]

    def _kept(self, gate: Gate, hits: Hits) -> Hits:
        """Return the hits of the questions whose expansions, now written, are to be used."""
        rows = [row for row in hits if self._texts[row]]
        if gate.policy != "learned" or not gate.needs_text or not rows:
            return hits
        block = self._block(rows)
        alone = pa.concat_tables(self._alone(rows).values())
        expanded = pa.concat_tables(hits[row] for row in rows)
        encoded = encode_apart(self._opened.encoder, block)
        expands = gate.expands(describe_after(block, alone, expanded, encoded)).tolist()
        left = {row for row, own in zip(rows, expands, strict=True) if not own}
        for row in left:
            self._decisions[row] = "not used"
        return {row: own for row, own in hits.items() if row not in left}

    def _write(self, rows: list[int]) -> None:
        if not rows:
            return
        written = self._opened.expand(
            [(self._asked[row].query, self._asked[row].seed) for row in rows]
        )
        self._texts = {row: each.text for row, each in zip(rows, written, strict=True)}
        self._remembered = {row for row, each in zip(rows, written, strict=True) if each.remembered}

    def _alone(self, rows: Iterable[int]) -> Hits:
        """Search without expansions, each question once."""
        rows = list(rows)
        missing = [row for row in rows if row not in self._found_alone]
        self._found_alone |= self._search(self._opened.encoder, missing, 0)
        return {row: self._found_alone[row] for row in rows}

    def _search(self, encoder: Encoder, rows: list[int], weight: float) -> Hits:
        """Search with the expansions that were written, if there are some."""
        if not rows:
            return {}
        run = self._opened.search(encoder, self._block(rows), weight, self._depth)
        where = spans(run)
        parts = {row: where.get(str(row), slice(0, 0)) for row in rows}
        return {row: run.slice(own.start, own.stop - own.start) for row, own in parts.items()}

    def _block(self, rows: list[int]) -> pa.Table:
        """Return questions as a search takes them, with the expansions that were written."""
        texts = [[self._texts[row]] if self._texts.get(row) else [] for row in rows]
        return pa.table(
            {
                "query_id": [str(row) for row in rows],
                "query": [self._asked[row].query for row in rows],
                "expansions": pa.array(texts, pa.list_(pa.string())),
            }
        )
