"""The engine that is elsewhere: an OpenAI-compatible server, such as vLLM's.

Each text is a request of its own with its own seed, many at once. Busy, failing and absent servers are
asked again by the client library, which minds Retry-After; wrong requests never are. The key comes from
OPENAI_API_KEY, which that library reads; no option, log line, error or artifact has it.

Every parameter of sampling is stated, and the tokens that end a text, so that nothing of the model's own
settings enters: vLLM and llama.cpp take them as fields, `transformers serve` as a generation
configuration. A server that knows neither is asked as OpenAI's is, with a warning. What a server counts
as a text's tokens is taken to include the token that ends it, as vLLM does.
"""

import asyncio
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
from openai.types.chat import ChatCompletionUserMessageParam

from expandr_core.errors import DataError
from expandr_core.generation.transformers_engine import Codec, Completion, Request
from expandr_core.options.generation import ChatOptions, EndpointOptions, SamplingOptions

log = logging.getLogger(__name__)
DIALECTS = ("fields", "generation_config", "none")  # how parameters that OpenAI lacks are stated
REPEATS = (
    16,
    0.1,
    0.5,
)  # texts seen at least, and the shares of repeated ones to warn of and to stop at
SHORT = 8  # tokens; shorter texts may well be equal
RETRIED = (408, 409, 429)  # of the wrong requests; and whatever is the server's own fault
Task = asyncio.Task[tuple[int, list[Completion]]]


class EndpointGenerator:
    """A causal LM that a server runs; the tokenizer and the template are those of a local folder."""

    def __init__(self, folder: Path, options: EndpointOptions, chat: ChatOptions | None = None):
        """Check the options, and read the tokenizer.

        Raises:
            DataError: if the URL or the name of the model is missing, or the URL has a key in it.
        """
        url = urlsplit(options.url)
        if url.scheme not in ("http", "https") or not url.hostname or not options.model:
            raise DataError(
                "the engine 'endpoint' needs llm.endpoint.url, such as http://host:8000/v1, and "
                "llm.endpoint.model, the name that the server has for the model"
            )
        if url.username or url.password or url.query:
            raise DataError(
                f"llm.endpoint.url for {url.hostname}: a URL must hold no key; set OPENAI_API_KEY"
            )
        self.codec, self.options = Codec(folder, chat), options
        self._variables = dict(chat.template) if chat else {}
        self._dialect = 0  # of DIALECTS
        self._sampled = self._repeated = 0  # texts, and those that equal another of their request

    def generate(
        self, requests: Sequence[Request], sampling: SamplingOptions, max_prompt_tokens: int
    ) -> Iterator[list[tuple[int, list[Completion]]]]:
        """Ask for all texts, a bounded number at once; yield each request when it is complete.

        Raises:
            DataError: if there is no key, or the server refuses the request.
            RuntimeError: if the server still fails after all retries.
        """
        turns = self.codec.turns(requests, sampling, max_prompt_tokens)
        with asyncio.Runner() as runner:
            client = self._client()
            tasks = runner.run(self._begin(client, requests, turns, sampling))
            try:
                pending = tasks
                while pending:
                    first = asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                    done, pending = runner.run(first)
                    written = [task.result() for task in done]
                    for index, texts in written:
                        self._note_repeats(requests[index], texts)
                    yield written
            finally:
                runner.run(_end(client, tasks))

    def _client(self) -> openai.AsyncOpenAI:
        try:
            return openai.AsyncOpenAI(
                base_url=self.options.url,
                max_retries=self.options.retries,
                timeout=self.options.timeout_seconds,
            )
        except openai.OpenAIError as error:
            raise DataError(
                f"there is no key for {self.options.url}; set OPENAI_API_KEY where the stage runs, "
                "to any word if the server asks for none"
            ) from error

    async def _begin(
        self,
        client: openai.AsyncOpenAI,
        requests: Sequence[Request],
        turns: list[tuple[str, list[int]]],
        sampling: SamplingOptions,
    ) -> set[Task]:
        """Begin a task for each request; together they ask for at most `concurrency` texts at once."""
        limit = asyncio.Semaphore(self.options.concurrency)

        async def write(index: int) -> tuple[int, list[Completion]]:
            texts = zip(requests[index].seeds, requests[index].sampling_temperatures, strict=True)
            asked = [self._ask(client, limit, turns[index], sampling, *text) for text in texts]
            return index, await asyncio.gather(*asked)

        return {asyncio.create_task(write(index)) for index in range(len(requests))}

    async def _ask(
        self,
        client: openai.AsyncOpenAI,
        limit: asyncio.Semaphore,
        turn: tuple[str, list[int]],
        sampling: SamplingOptions,
        seed: int,
        temperature: float,
    ) -> Completion:
        """Ask for one text."""
        asked: dict[str, Any] = {
            "model": self.options.model,
            "seed": seed,
            "temperature": temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
        }
        while True:
            async with limit:
                dialect = self._dialect
                extra = self._extra(DIALECTS[dialect], sampling, temperature)
                try:
                    return self._completion(await self._post(client, turn, asked, extra))
                except openai.APIError as error:
                    if not _is_unknown(error, extra):
                        raise self._explained(
                            error, client.api_key
                        ) from None  # it may hold the key
            if dialect == self._dialect:  # the first that was refused so
                self._dialect += 1
                if DIALECTS[self._dialect] == "none":
                    log.warning(
                        "%s takes no %s: what its model's own settings add to the sampling is unknown",
                        *(self.options.url, " or ".join(["top_k", "generation_config"])),
                    )

    async def _post(
        self,
        client: openai.AsyncOpenAI,
        turn: tuple[str, list[int]],
        asked: dict[str, Any],
        extra: dict[str, Any],
    ) -> Any:
        content, ids = turn
        if self.options.api == "completions":
            return await client.completions.create(prompt=ids, **asked, extra_body=extra)
        said = ChatCompletionUserMessageParam(role="user", content=content)
        if self._variables:  # vLLM and others take them so
            extra = extra | {"chat_template_kwargs": self._variables}
        return await client.chat.completions.create(messages=[said], **asked, extra_body=extra)

    def _extra(self, dialect: str, sampling: SamplingOptions, temperature: float) -> dict[str, Any]:
        """State what OpenAI has no parameter for: nothing but temperature and top_p shapes a text."""
        ends = sorted(self.codec.ends)
        if dialect == "fields":
            return {
                "top_k": 0,
                "min_p": 0.0,
                "repetition_penalty": 1.0,
                "repeat_penalty": 1.0,  # llama.cpp's name
                "min_tokens": 0,
                "stop_token_ids": ends,
            }
        if dialect == "none":
            return {}
        settings: dict[str, Any] = {
            "do_sample": temperature > 0,
            "max_new_tokens": sampling.max_new_tokens,
            "eos_token_id": ends,
        }
        if temperature > 0:
            settings |= {"temperature": temperature, "top_p": sampling.top_p, "top_k": 0}
        return {"generation_config": json.dumps(settings)}

    def _completion(self, answer: Any) -> Completion:
        """Read the one text of an answer.

        Raises:
            DataError: if it is not an answer of such a server, or not to one prompt.
            RuntimeError: if it tells of an error, with the status of success.
        """
        if isinstance(answer, str):
            raise DataError(
                f"{self.options.url}: answers with a page and not with JSON ({answer[:200]!r}); correct "
                "llm.endpoint.url, which often ends in /v1"
            )
        choices = getattr(answer, "choices", None)
        if not choices:
            said = str(getattr(answer, "error", None) or answer)[:300]
            raise RuntimeError(f"{self.options.url}: answers without a text: {said}")
        if len(choices) > 1:
            raise DataError(
                f"{self.options.url}: answers with {len(choices)} texts to one prompt, so it does not "
                "take token ids; set llm.endpoint.api to 'chat'"
            )
        if answer.usage is None:
            raise DataError(f"{self.options.url}: answers without `usage`; use another server")
        [choice] = choices
        text = choice.text if self.options.api == "completions" else choice.message.content
        stopped = choice.finish_reason == "stop"
        tokens = max(0, answer.usage.completion_tokens - stopped)
        text, thoughts = self.codec.answer(text or "")
        return Completion(text, "stop" if stopped else "length", tokens, thoughts)

    def _note_repeats(self, request: Request, texts: list[Completion]) -> None:
        """Notice a server that minds neither seed nor temperature.

        Raises:
            DataError: if most of the sampled texts equal another of their request.
        """
        drawn = [
            completion.text
            for completion, temperature in zip(texts, request.sampling_temperatures, strict=True)
            if temperature > 0 and completion.text and completion.tokens >= SHORT - 1
        ]
        before, (enough, warned, most) = self._repeated, REPEATS
        told = self._sampled >= enough and before > warned * self._sampled
        if len(drawn) > 1:
            self._sampled += len(drawn)
            self._repeated += len(drawn) - len(set(drawn))
        if self._sampled < enough or self._repeated <= warned * self._sampled:
            return
        said = (
            f"{self.options.url}: {self._repeated} of {self._sampled} sampled texts equal another of "
            "their query, so the server seems to mind neither `seed` nor `temperature`"
        )
        if self._repeated > most * self._sampled:
            raise DataError(
                f"{said}; let it sample with a seed for each request, or use another engine"
            )
        if not told:
            log.warning("%s", said)

    def _explained(self, error: openai.APIError, key: str) -> Exception:
        """Tell a wrong request from a server in trouble; never with the key."""
        said = f"{self.options.url}: {error.message.replace(key, '***')}"
        status = error.status_code if isinstance(error, openai.APIStatusError) else None
        if status in (401, 403):
            return DataError(
                f"{said}; set OPENAI_API_KEY, where the stage runs, to the server's key"
            )
        if status == 404:
            return DataError(
                f"{said}; correct llm.endpoint.model ({self.options.model}), llm.endpoint.url, or "
                f"llm.endpoint.api ({self.options.api})"
            )
        if status and 400 <= status < 500 and status not in RETRIED:
            remedy = "the server does not take such requests, see llm.endpoint.api"
            if self.options.api == "completions":
                remedy += ": a prompt is sent as token ids; if it takes none, set that to 'chat'"
            return DataError(f"{said}; {remedy}")
        return RuntimeError(f"{said}; still so after {self.options.retries} retries")


def _is_unknown(error: openai.APIError, extra: dict[str, Any]) -> bool:
    """Tell whether a request was refused because of a parameter that the server does not know."""
    status = error.status_code if isinstance(error, openai.APIStatusError) else None
    body = error.response.text if isinstance(error, openai.APIStatusError) else ""
    return status in (400, 422) and any(name in error.message + body for name in extra)


async def _end(client: openai.AsyncOpenAI, tasks: set[Task]) -> None:
    """Give up what is not done; the server notices the closed connections."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await client.close()
