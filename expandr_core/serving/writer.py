"""A language model that writes the expansions of queries, and remembers them."""

from collections.abc import MutableMapping, Sequence
from functools import cached_property
from typing import NamedTuple

from expandr_core.errors import DataError
from expandr_core.generation.engine import Generator, LLMSpec, Request, open_engine
from expandr_core.options.generation import EndpointOptions, TransformersOptions
from expandr_core.options.loop import JointLoopOptions
from expandr_core.seeding import derive_seed
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store

Memory = MutableMapping[tuple[str, str, int | None], str]  # by writer, query and seed


class Unwritten(DataError):
    """The language model, or the server that runs it, fails: not the fault of a query."""


class Written(NamedTuple):
    """An expansion, perhaps empty, and whether it had been written before."""

    text: str
    remembered: bool


class Writer:
    """A language model with its prompt, loaded when it first writes.

    Attributes:
        identity: what determines its texts, apart from query and seed.
    """

    def __init__(
        self,
        store: Store,
        llm: Artifact,
        options: JointLoopOptions,
        endpoint: EndpointOptions | None,
        memory: Memory,
    ):
        """Name a language model.

        Args:
            store: that has it.
            llm: a model, or an adapter.
            options: of the run that kept it.
            endpoint: a server that runs it, with its adapter merged; by default this process does.
            memory: of expansions, which writers can share.
        """
        self._store, self._llm, self._options = store, llm, options
        self._endpoint, self._memory = endpoint, memory
        server = (endpoint.url, endpoint.model, endpoint.api) if endpoint else ()
        asked = (options.expand.prompt, options.expand.expansion)
        said = [each.model_dump_json() for each in asked]
        own = options.llm
        self.identity = repr((llm.key, llm.digest, server, said, own.template, own.date))

    def write(self, asked: Sequence[tuple[str, int | None]]) -> list[Written]:
        """Return the expansion of each query, those that are new written together.

        Args:
            asked: queries, each with the seed of a sampled text; None for the likeliest text.

        Raises:
            Unwritten: if the language model fails.
        """
        known = {
            each: text
            for each in asked
            if (text := self._memory.get((self.identity, *each))) is not None
        }
        new = [each for each in dict.fromkeys(asked) if each not in known]
        written = self._generate(new) if new else {}
        for each, text in written.items():
            self._memory[self.identity, *each] = text
        texts, first = known | written, {*written}
        found = []
        for each in asked:
            found.append(Written(texts.get(each, ""), each not in first))
            first.discard(each)
        return found

    def load(self) -> None:
        """Load the model, if a server does not have it."""
        _ = self.generator

    def _generate(self, asked: list[tuple[str, int | None]]) -> dict[tuple[str, int | None], str]:
        from expandr_core.generation.prompts import remove_preamble

        options, generator = self._options.expand, self.generator
        requests = [self._request(*each) for each in asked]
        try:
            batches = generator.generate(requests, options.expansion, options.prompt.max_tokens)
            return {
                asked[index]: remove_preamble(completion.text, options.prompt.name)
                for batch in batches
                for index, [completion] in batch
            }
        except Exception as error:  # whatever it is, queries without the model go on
            raise Unwritten(f"the language model does not write: {error}") from error

    def _request(self, query: str, seed: int | None) -> Request:
        options = self._options.expand
        if seed is None:
            return Request(options.prompt, query, "", (0,), (0.0,))
        temperature = options.expansion.sampling_temperatures[0]
        return Request(
            options.prompt, query, "", (derive_seed("serve", seed, query),), (temperature,)
        )

    @cached_property
    def generator(self) -> Generator:
        """The engine with the model; what is touched first loads it."""
        from expandr_core.generation.adapters import language_model
        from expandr_core.generation.chat_templates import chat_options, template_of

        own = self._options.llm
        paths = {
            role: self._store.local(part)
            for role, part in language_model(self._store, self._llm).items()
        }
        chat = chat_options(template_of(paths["llm"]), own.template, own.date)
        spec = LLMSpec(
            paths["llm"],
            self._options.device,
            None if self._endpoint else paths.get("adapter"),
            chat,
            precision=own.precision,
        )
        engine = self._endpoint or TransformersOptions()
        with open_engine(spec, engine) as opened:  # neither of the two needs to be closed
            return opened
