"""Let the language model write."""

from collections.abc import Iterable
from functools import partial

from expandr_core.generation.adapters import language_model
from expandr_core.generation.chat_templates import chat_options, find_template
from expandr_core.options.generation import ChatOptions, Prompt, SamplingOptions
from expandr_core.stages import expand as stage
from expandr_core.store.artifacts import Artifact
from expandr_core.store.run_records import Step
from expandr_core.store.store import Store
from tasks.pipeline import Pipeline


def runnable(pipeline: Pipeline, llm: Artifact) -> dict[str, Artifact]:
    """Return what runs a language model, by role: "llm" and, if it is kept apart, its "adapter".

    A dry run takes an adapter for the whole model: it costs the same.
    """
    return pipeline.ask(lambda store: language_model(store, llm), predicted={"llm": llm})


def chat_of(pipeline: Pipeline, llm: Artifact) -> ChatOptions:
    """Return what determines how the model's chat template is rendered.

    Raises:
        DataError: if the template does not read one of the variables of `llm.template`.
    """
    options = pipeline.options.llm

    def read(store: Store) -> ChatOptions:
        model = language_model(store, llm)["llm"]
        template = find_template(partial(_read, store, model))
        return chat_options(template, options.template, options.date)

    return pipeline.ask(read, predicted=ChatOptions(template=options.template))


def _read(store: Store, artifact: Artifact, path: str) -> str | None:
    """Read a file of an artifact, if it has one of that name, and fetch no other."""
    if path not in artifact.files:
        return None
    return store.local(artifact.at(path)).read_text(encoding="utf-8")


def _write(
    pipeline: Pipeline,
    inputs: dict[str, Artifact],
    title: str,
    name: str,
    sampling: SamplingOptions,
    prompt: Prompt | None = None,
) -> Artifact:
    """Write texts for `inputs["queries"]` with `inputs["llm"]`."""
    options, chat = pipeline.options, chat_of(pipeline, inputs["llm"])
    resolved = stage.OPTIONS.of(options, sampling, prompt, chat)
    inputs = {**inputs, **runnable(pipeline, inputs["llm"])}
    return pipeline.step("expand", inputs, title, options=resolved, name=name)


def write_candidates(pipeline: Pipeline, queries: Artifact, llm: Artifact) -> Artifact:
    """Write the candidates that the reward ranks: many for each query, at several temperatures."""
    inputs, sampling = {"queries": queries, "llm": llm}, pipeline.options.expand.candidates
    return _write(pipeline, inputs, "write candidates", "candidates", sampling)


def write_answers(pipeline: Pipeline, queries: Artifact, llm: Artifact) -> Artifact:
    """Write the answer of the self-reward, from the query and its positive passage."""
    inputs, sampling = {"queries": queries, "llm": llm}, pipeline.options.expand.answer
    return _write(pipeline, inputs, "write answers", "answers", sampling, "q2a")


def write_expansions(
    pipeline: Pipeline,
    queries: Artifact,
    llm: Artifact,
    title: str,
    name: str,
    samples_per_temperature: int = 0,
) -> Artifact:
    """Write expansions: as many as the options say (evaluation), or so many at every temperature."""
    sampling = pipeline.options.expand.expansion
    if samples_per_temperature:
        samples = samples_per_temperature * len(sampling.sampling_temperatures)
        sampling = sampling.model_copy(update={"samples": samples})
    return _write(pipeline, {"queries": queries, "llm": llm}, title, name, sampling)


def write_greedy(
    pipeline: Pipeline, queries: Artifact, llm: Artifact, title: str, name: str
) -> Artifact:
    """Write one expansion a query, always the likeliest token.

    A weak model may end all of them at once, though it writes when it samples: only a warning says so.
    """
    sampling = pipeline.options.expand.expansion.model_copy(
        update={"samples": 1, "sampling_temperatures": (0.0,), "top_p": 1.0}
    )
    asked = stage.OPTIONS.of(pipeline.options, sampling, None, chat_of(pipeline, llm))
    asked = asked.model_copy(update={"may_be_empty": True})
    inputs = {"queries": queries, **runnable(pipeline, llm)}
    return pipeline.step("expand", inputs, title, options=asked, name=name)


def empty_warnings(
    written: Iterable[tuple[str, Artifact]], steps: Iterable[Step]
) -> tuple[str, ...]:
    """Warn of the texts that are empty in large part.

    Args:
        written: what systems are measured with, by title; a run before this one may have written it.
        steps: of this run, of any stage.
    """
    titled = [*written, *((step.title, step.artifact) for step in steps)]
    texts = {artifact.key: (title, artifact) for title, artifact in titled}
    return tuple(
        f"{title}: {warning}"
        for title, artifact in texts.values()
        if artifact.stage == "expand" and (warning := stage.empty_warning(artifact.counts))
    )
