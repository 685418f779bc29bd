"""Let the language model write."""

from collections.abc import Iterable

from expandr_core.options.generation import Prompt, SamplingOptions
from expandr_core.options.loop import JointLoopOptions
from expandr_core.stages import expand as stage
from expandr_core.store.artifacts import Artifact
from tasks.stage import Workspace


def _write(
    work: Workspace,
    title: str,
    inputs: tuple[Artifact, Artifact],
    options: JointLoopOptions,
    sampling: SamplingOptions,
    prompt: Prompt,
    max_shards: int = 0,
) -> Artifact:
    queries, llm = inputs
    resolved = stage.OPTIONS.of(options, sampling, prompt, work.chat(llm, options.llm))
    inputs_by_role = {"queries": queries, **work.language_model(llm)}
    return work.make(title, "expand", resolved, inputs_by_role, max_shards=max_shards)


def write_candidates(
    work: Workspace,
    queries: Artifact,
    llm: Artifact,
    options: JointLoopOptions,
    when: str = "",
    max_shards: int = 0,
) -> Artifact:
    """Write the candidates that the reward ranks: many for each query, at several temperatures."""
    title, inputs = f"write candidates{when}", (queries, llm)
    sampling, prompt = options.expand.candidates, options.expand.prompt.name
    return _write(work, title, inputs, options, sampling, prompt, max_shards)


def write_answers(
    work: Workspace,
    queries: Artifact,
    llm: Artifact,
    options: JointLoopOptions,
    when: str = "",
    max_shards: int = 0,
) -> Artifact:
    """Write the answer of the self-reward, from the query and its positive passage."""
    title, inputs = f"write answers{when}", (queries, llm)
    return _write(work, title, inputs, options, options.expand.answer, "q2a", max_shards)


def write_expansions(
    work: Workspace,
    queries: Artifact,
    llm: Artifact,
    options: JointLoopOptions,
    title: str,
    each: int | None = None,
) -> Artifact:
    """Write expansions: as many as the options say (evaluation), or `each` at every temperature."""
    sampling = options.expand.expansion
    if each:
        samples = each * len(sampling.sampling_temperatures)
        sampling = sampling.model_copy(update={"samples": samples})
    return _write(work, title, (queries, llm), options, sampling, options.expand.prompt.name)


def write_greedy(
    work: Workspace, queries: Artifact, llm: Artifact, options: JointLoopOptions, title: str
) -> Artifact:
    """Write one expansion a query, always the likeliest token."""
    sampling = options.expand.expansion.model_copy(
        update={"samples": 1, "sampling_temperatures": (0.0,), "top_p": 1.0}
    )
    return _write(work, title, (queries, llm), options, sampling, options.expand.prompt.name)


def empty_warnings(written: Iterable[tuple[str, Artifact]]) -> tuple[str, ...]:
    """Warn of the steps whose texts are empty in large part; an artifact of before counts as well.

    Args:
        written: titles and artifacts, of any stage.
    """
    texts = {artifact.key: (title, artifact) for title, artifact in written}
    return tuple(
        f"{title}: {warning}"
        for title, artifact in texts.values()
        if artifact.stage == "expand" and (warning := stage.empty_warning(artifact.counts))
    )
