"""The engine endpoint: an OpenAI-compatible server, such as vLLM's.

Each text is a separate request with its own seed, many at once. The client library repeats requests to
busy, failing and absent servers, and honours Retry-After; it never repeats wrong requests. It also reads
the key, from OPENAI_API_KEY; no option, log line, error or artifact contains it.

Requests state every sampling parameter and the tokens that end a text, so that the model's own settings
have no effect: vLLM and llama.cpp accept them as fields, `transformers serve` as a generation
configuration. A server that accepts neither gets OpenAI's parameters only, with a warning. We assume, as
vLLM does, that a server counts the token that ends a text among its tokens.
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
from expandr_core.generation.engine import Codec, Completed, Completion, Request
from expandr_core.generation.prompts import FittedPrompt
from expandr_core.options.generation import ChatOptions, EndpointOptions, SamplingOptions

log = logging.getLogger(__name__)
DIALECTS = ("fields", "generation_config", "none")  # how to state parameters that OpenAI lacks
MIN_SAMPLED = 16  # texts before repeats mean anything
WARN_REPEATED, MAX_REPEATED = 0.1, 0.5  # shares of sampled texts
SHORT = 8  # tokens; shorter texts may well be equal by chance
RETRIED = (408, 409, 429)  # client errors that the library retries, as it does all server errors
Task = asyncio.Task[tuple[int, list[Completion]]]


class EndpointGenerator:
    """A causal LM on a server; its tokenizer and chat template are read from a local folder."""

    def __init__(self, folder: Path, options: EndpointOptions, chat: ChatOptions | None = None):
        """Check the options and read the tokenizer.

        Raises:
            DataError: if URL or model name is missing, or the URL contains a key.
        """
        url = urlsplit(options.url)
        if url.scheme not in ("http", "https") or not url.hostname or not options.model:
            raise DataError(
                "the engine 'endpoint' needs llm.endpoint.url, such as http://host:8000/v1, and "
                "llm.endpoint.model, the server's name for the model"
            )
        if url.username or url.password or url.query:
            raise DataError(
                f"llm.endpoint.url for {url.hostname}: a URL must not contain a key; set "
                "OPENAI_API_KEY instead"
            )
        self.codec, self.options = Codec(folder, chat), options
        self.precision = ""
        self._variables = dict(chat.template) if chat else {}
        self._dialect = 0  # index in DIALECTS
        self._sampled = self._repeated = 0  # texts, and those that repeat another of their request

    def generate(
        self, requests: Sequence[Request], sampling: SamplingOptions, max_prompt_tokens: int
    ) -> Iterator[Completed]:
        """Ask for all texts, a bounded number at once; yield each request when it is complete.

        Raises:
            DataError: if there is no key, or the server refuses a request.
            RuntimeError: if the server still fails after all retries.
        """
        prompts = self.codec.prompts(requests, sampling, max_prompt_tokens)
        with asyncio.Runner() as runner:
            client = self._client()
            tasks = runner.run(self._begin(client, requests, prompts, sampling))
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
                f"there is no key for {self.options.url}; set OPENAI_API_KEY on the machine that "
                "runs the stage, to any word if the server needs none"
            ) from error

    async def _begin(
        self,
        client: openai.AsyncOpenAI,
        requests: Sequence[Request],
        prompts: list[FittedPrompt],
        sampling: SamplingOptions,
    ) -> set[Task]:
        """Start a task for each request; together they ask for at most `concurrency` texts at once."""
        limit = asyncio.Semaphore(self.options.concurrency)

        async def write(index: int) -> tuple[int, list[Completion]]:
            texts = zip(requests[index].seeds, requests[index].sampling_temperatures, strict=True)
            asked = [self._ask(client, limit, prompts[index], sampling, *text) for text in texts]
            return index, await asyncio.gather(*asked)

        return {asyncio.create_task(write(index)) for index in range(len(requests))}

    async def _ask(
        self,
        client: openai.AsyncOpenAI,
        limit: asyncio.Semaphore,
        prompt: FittedPrompt,
        sampling: SamplingOptions,
        seed: int,
        temperature: float,
    ) -> Completion:
        """Ask for one text, in the first dialect that the server does not refuse."""
        standard: dict[str, Any] = {
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
                    return self._completion(await self._post(client, prompt, standard, extra))
                except openai.APIError as error:
                    if not _is_unknown(error, extra):  # from None: its cause may contain the key
                        raise self._explained(error, client.api_key) from None
            if dialect == self._dialect:  # no other text has changed the dialect meanwhile
                self._dialect += 1
                if DIALECTS[self._dialect] == "none":
                    log.warning(
                        "%s takes no top_k or generation_config, so the settings in its model's "
                        "folder may change how texts are sampled",
                        self.options.url,
                    )

    async def _post(
        self,
        client: openai.AsyncOpenAI,
        prompt: FittedPrompt,
        standard: dict[str, Any],
        extra: dict[str, Any],
    ) -> Any:
        if self.options.api == "completions":
            return await client.completions.create(prompt=prompt.ids, **standard, extra_body=extra)
        turn = ChatCompletionUserMessageParam(role="user", content=prompt.turn)
        if self._variables:  # the name in vLLM and other servers
            extra = extra | {"chat_template_kwargs": self._variables}
        return await client.chat.completions.create(messages=[turn], **standard, extra_body=extra)

    def _extra(self, dialect: str, sampling: SamplingOptions, temperature: float) -> dict[str, Any]:
        """State what OpenAI has no parameter for, so that only temperature and top_p shape a text."""
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
            DataError: if it is no answer of such a server, or answers several prompts.
            RuntimeError: if it reports an error despite a status of success.
        """
        if isinstance(answer, str):
            raise DataError(
                f"{self.options.url}: answers with a page instead of JSON ({answer[:200]!r}); correct "
                "llm.endpoint.url, which often ends in /v1"
            )
        choices = getattr(answer, "choices", None)
        if not choices:
            reason = str(getattr(answer, "error", None) or answer)[:300]
            raise RuntimeError(f"{self.options.url}: answers without a text: {reason}")
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
        """Detect a server that ignores seed and temperature.

        Raises:
            DataError: if more than half of the sampled texts repeat another of their request.
        """
        sampled = [
            completion.text
            for completion, temperature in zip(texts, request.sampling_temperatures, strict=True)
            if temperature > 0 and completion.text and completion.tokens >= SHORT - 1
        ]
        warned = self._repeats_too_often(WARN_REPEATED)
        if len(sampled) > 1:
            self._sampled += len(sampled)
            self._repeated += len(sampled) - len(set(sampled))
        finding = (
            f"{self.options.url}: {self._repeated} of {self._sampled} sampled texts equal another of "
            "their query, so the server seems to ignore `seed` and `temperature`"
        )
        if self._repeats_too_often(MAX_REPEATED):
            raise DataError(
                f"{finding}; let it sample with a seed for each request, or use another engine"
            )
        if self._repeats_too_often(WARN_REPEATED) and not warned:
            log.warning("%s", finding)

    def _repeats_too_often(self, share: float) -> bool:
        return self._sampled >= MIN_SAMPLED and self._repeated > share * self._sampled

    def _explained(self, error: openai.APIError, key: str) -> Exception:
        """Tell wrong requests, a DataError, from servers in trouble; never show the key."""
        said = f"{self.options.url}: {error.message.replace(key, '***')}"
        status = error.status_code if isinstance(error, openai.APIStatusError) else None
        if status in (401, 403):
            return DataError(
                f"{said}; set OPENAI_API_KEY to the server's key on the machine that runs the stage"
            )
        if status == 404:
            return DataError(
                f"{said}; correct llm.endpoint.model ({self.options.model}), llm.endpoint.url, or "
                f"llm.endpoint.api ({self.options.api})"
            )
        if status and 400 <= status < 500 and status not in RETRIED:
            remedy = "the server does not accept such requests, see llm.endpoint.api"
            if self.options.api == "completions":
                remedy += (
                    ", which sends prompts as token ids; if it accepts none, set that to 'chat'"
                )
            return DataError(f"{said}; {remedy}")
        retries = self.options.retries
        return RuntimeError(said + (f"; it still fails after {retries} retries" if retries else ""))


def _is_unknown(error: openai.APIError, extra: dict[str, Any]) -> bool:
    """Tell whether a server refused a request because of a parameter that it does not know."""
    status = error.status_code if isinstance(error, openai.APIStatusError) else None
    body = error.response.text if isinstance(error, openai.APIStatusError) else ""
    return status in (400, 422) and any(name in error.message + body for name in extra)


async def _end(client: openai.AsyncOpenAI, tasks: set[Task]) -> None:
    """Cancel unfinished tasks; the server sees their connections close."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await client.close()
