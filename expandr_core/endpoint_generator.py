"""The engine that is elsewhere: an OpenAI-compatible server, such as `vllm serve`.

Each text is a request of its own with its own seed, many at once. Busy, failing and absent servers are
asked again by the client library, which minds Retry-After; wrong requests never are. The key comes from
OPENAI_API_KEY, which that library reads; no option, log line, error or artifact has it.

The server decodes the texts, and ends them where its own model's configuration says; what it counts as
a text's tokens is taken to include the token that ends it, as vLLM does.
"""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
from openai.types.chat import ChatCompletionUserMessageParam

from expandr_core.errors import DataError
from expandr_core.generator import Codec, Completion, Request
from expandr_core.options import ChatOptions, EndpointOptions, SamplingOptions

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
                    yield [task.result() for task in done]
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
        content, ids = turn
        async with limit:
            try:
                if self.options.api == "completions":
                    answer = await client.completions.create(prompt=ids, **asked)
                    text = answer.choices[0].text
                else:
                    said = ChatCompletionUserMessageParam(role="user", content=content)
                    if self._variables:  # vLLM and others take them so
                        asked["extra_body"] = {"chat_template_kwargs": self._variables}
                    answer = await client.chat.completions.create(messages=[said], **asked)
                    text = answer.choices[0].message.content or ""
            except openai.APIError as error:
                raise self._explained(error, client.api_key) from None  # its body may hold the key
        if answer.usage is None:
            raise DataError(f"{self.options.url}: answers without `usage`; use another server")
        stopped = answer.choices[0].finish_reason == "stop"
        tokens = answer.usage.completion_tokens - stopped
        text, thoughts = self.codec.answer(text)
        return Completion(text, "stop" if stopped else "length", tokens, thoughts)

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
            return DataError(
                f"{said}; the server does not take such requests, see llm.endpoint.api"
            )
        return RuntimeError(f"{said}; still so after {self.options.retries} retries")


async def _end(client: openai.AsyncOpenAI, tasks: set[Task]) -> None:
    """Give up what is not done; the server notices the closed connections."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await client.close()
