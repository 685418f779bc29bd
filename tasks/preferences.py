"""Reward the candidates, choose the preference pairs, and audit these before anything is trained."""

from expandr_core.errors import DataError
from expandr_core.options.preferences import PreferenceOptions
from expandr_core.preferences.audit import reason_to_stop
from expandr_core.preferences.lazy import next_step, shards_with
from expandr_core.preferences.pairs import settled
from expandr_core.runtime.shards import shard_sizes
from expandr_core.stages import audit_pairs as audit_stage
from expandr_core.stages import pairs as pairs_stage
from expandr_core.stages import reward as reward_stage
from expandr_core.store.artifacts import Artifact
from tasks.expand import write_answers, write_candidates
from tasks.pipeline import Pipeline


def make_pairs(
    pipeline: Pipeline, queries: Artifact, llm: Artifact, retriever: Artifact
) -> Artifact:
    """Let the LLM write candidates and answers, reward them, and choose pairs.

    With `preferences.lazy` it writes for the first shards of the queries only, and for more of them
    until enough pairs are accepted. The pairs are the first of those that all shards would bring, and
    a step finds the shards of the one before.
    """
    options, path = pipeline.options, pipeline.open().local(queries)
    wanted = options.preferences.max_pairs
    sizes = shard_sizes(path, options.expand.queries_per_shard)
    first = shards_with(wanted, sizes) if options.preferences.lazy else len(sizes)
    while first < len(sizes):
        some = pipeline.first_shards(first)
        rewards, pairs = _rewarded_pairs(some, queries, llm, retriever)
        accepted = int(pairs.counts["accepted"])
        if accepted >= wanted:
            break
        first = next_step(wanted, accepted, first, sizes)
    else:
        rewards, pairs = _rewarded_pairs(pipeline, queries, llm, retriever)
    audit_pairs(pipeline, rewards, pairs)
    return pairs


def _rewarded_pairs(
    pipeline: Pipeline, queries: Artifact, llm: Artifact, retriever: Artifact
) -> tuple[Artifact, Artifact]:
    """Make the rewards and the pairs of the pipeline's shards."""
    candidates = pipeline.submit("candidates", write_candidates, queries, llm)
    answers = pipeline.submit("answers", write_answers, queries, llm)
    rewards = reward(pipeline, candidates.result(), answers.result(), queries, retriever)
    return rewards, choose_pairs(pipeline, rewards, partial=pipeline.max_shards > 0)


def reward(
    pipeline: Pipeline,
    candidates: Artifact,
    answers: Artifact,
    examples: Artifact,
    retriever: Artifact,
) -> Artifact:
    """Rank the candidates by the current retriever: nearness to the positive and to the answer."""
    inputs = {
        "candidates": candidates,
        "answers": answers,
        "examples": examples,
        "retriever": retriever,
    }
    options = reward_stage.OPTIONS.of(pipeline.options.retriever)
    return pipeline.step("reward", inputs, "reward the candidates", options=options)


def choose_pairs(
    pipeline: Pipeline, rewards: Artifact, name: str = "", partial: bool = False
) -> Artifact:
    """Choose each query's best and worst candidate.

    Args:
        pipeline: of the run.
        rewards: of the candidates.
        name: of the step.
        partial: the rewards are those of some queries only, so that no pair at all is no error.
    """
    options = _accepting(pipeline, rewards)
    resolved = pairs_stage.OPTIONS(preferences=options, partial=partial)
    return pipeline.step("pairs", {"rewards": rewards}, "choose pairs", options=resolved, name=name)


def _accepting(pipeline: Pipeline, rewards: Artifact) -> PreferenceOptions:
    """Return the options with the rule of acceptance that suits the encoder of the rewards.

    A dry run leaves it open: the calibration knows which share is accepted.
    """
    options = pipeline.options.preferences
    return pipeline.ask(lambda store: settled(options, rewards, store), predicted=options)


def audit_pairs(pipeline: Pipeline, rewards: Artifact, pairs: Artifact) -> Artifact:
    """Show in Prefect what the pairs are like, and stop if nothing should be trained on them.

    Raises:
        DataError: if the pairs are too few, or teach only length.
    """
    options, inputs = pipeline.options.preferences, {"pairs": pairs, "rewards": rewards}
    audit = pipeline.step("audit_pairs", inputs, "audit the pairs", options=audit_stage.OPTIONS())
    pipeline.publish(audit, "pair_audit.md", "pairs-audit")
    reason = reason_to_stop(
        pairs.counts | audit.counts, options.minimum_pairs, options.max_length_bias
    )
    if reason:
        raise DataError(f"{reason} ({pairs.key}; see {audit.key}/pair_audit.md)")
    return audit
