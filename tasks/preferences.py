"""Reward the candidates, choose the preference pairs, and audit these before anything is trained."""

from expandr_core.errors import DataError
from expandr_core.options.loop import JointLoopOptions
from expandr_core.options.preferences import PreferenceOptions
from expandr_core.options.retriever import RetrieverOptions
from expandr_core.preferences.audit import reason_to_stop
from expandr_core.preferences.lazy import next_step, shards_with
from expandr_core.runtime.shards import shard_sizes
from expandr_core.stages import audit_pairs as audit_stage
from expandr_core.stages import pairs as pairs_stage
from expandr_core.stages import reward as reward_stage
from expandr_core.store.artifacts import Artifact
from tasks.expand import write_answers, write_candidates
from tasks.stage import Workspace


def make_pairs(
    work: Workspace,
    queries: Artifact,
    llm: Artifact,
    retriever: Artifact,
    options: JointLoopOptions,
    when: str = "",
) -> Artifact:
    """Let the LLM write candidates and answers, reward them, and choose pairs.

    With `preferences.lazy` it writes for the first shards of the queries only, and for more of them
    until enough pairs are accepted. The pairs are the first of those that all shards would bring, and
    a step finds the shards of the one before.
    """
    path, wanted = work.open().local(queries), options.preferences.max_pairs
    sizes = shard_sizes(path, options.expand.queries_per_shard)
    first = shards_with(wanted, sizes) if options.preferences.lazy else len(sizes)
    while first < len(sizes):
        step = f"{when}, first {first} of {len(sizes)} shards"
        rewards, pairs = _write_pairs(work, queries, llm, retriever, options, step, first)
        accepted = int(pairs.counts["accepted"])
        if accepted >= wanted:
            break
        first = next_step(wanted, accepted, first, sizes)
    else:
        rewards, pairs = _write_pairs(work, queries, llm, retriever, options, when, 0)
    audit_pairs(work, rewards, pairs, options.preferences, when)
    return pairs


def _write_pairs(
    work: Workspace,
    queries: Artifact,
    llm: Artifact,
    retriever: Artifact,
    options: JointLoopOptions,
    when: str,
    max_shards: int,
) -> tuple[Artifact, Artifact]:
    """Make the rewards and pairs of the first shards, or of all."""
    candidates = write_candidates(work, queries, llm, options, when, max_shards)
    answers = write_answers(work, queries, llm, options, when, max_shards)
    inputs = (candidates, answers, queries, retriever)
    rewards = reward(work, *inputs, options=options.retriever, when=when)
    pairs = choose_pairs(work, rewards, options.preferences, when, more_to_come=max_shards > 0)
    return rewards, pairs


def reward(
    work: Workspace,
    candidates: Artifact,
    answers: Artifact,
    examples: Artifact,
    retriever: Artifact,
    options: RetrieverOptions,
    when: str = "",
) -> Artifact:
    """Rank the candidates by the current retriever: nearness to the positive and to the answer."""
    return work.make(
        f"reward the candidates{when}",
        "reward",
        reward_stage.OPTIONS.of(options),
        {
            "candidates": candidates,
            "answers": answers,
            "examples": examples,
            "retriever": retriever,
        },
    )


def choose_pairs(
    work: Workspace,
    rewards: Artifact,
    options: PreferenceOptions,
    when: str = "",
    more_to_come: bool = False,
) -> Artifact:
    """Choose each query's best and worst candidate; none is an error, unless more can come."""
    options = work.settled(options, rewards)
    resolved = pairs_stage.OPTIONS(**options.model_dump(), more_to_come=more_to_come)
    return work.make(f"choose pairs{when}", "pairs", resolved, {"rewards": rewards})


def audit_pairs(
    work: Workspace,
    rewards: Artifact,
    pairs: Artifact,
    options: PreferenceOptions,
    when: str = "",
) -> Artifact:
    """Show in Prefect what the pairs are like, and stop if nothing should be trained on them.

    Raises:
        DataError: if the pairs are too few, or teach only length.
    """
    inputs = {"pairs": pairs, "rewards": rewards}
    audit = work.make(f"audit the pairs{when}", "audit_pairs", audit_stage.OPTIONS(), inputs)
    work.publish(audit, "pair_audit.md", "pairs-audit")
    facts = pairs.counts | audit.counts
    reason = reason_to_stop(facts, options.minimum_pairs, options.length_share)
    if reason:
        raise DataError(f"{reason} ({pairs.key}; see {audit.key}/pair_audit.md)")
    return audit
