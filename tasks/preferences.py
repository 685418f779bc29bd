"""Choose preference pairs by the reward, or import them; audit them before anything is trained."""

from dataclasses import dataclass

from expandr_core.errors import DataError
from expandr_core.options.loop import JointLoopOptions
from expandr_core.options.preferences import PreferenceOptions
from expandr_core.preferences.audit import reason_to_stop
from expandr_core.preferences.lazy import next_step, shards_with
from expandr_core.preferences.pairs import settled
from expandr_core.runtime.shards import shard_sizes
from expandr_core.stages import audit_pairs as audit_stage
from expandr_core.stages import example_passages
from expandr_core.stages import import_pairs as import_stage
from expandr_core.stages import pairs as pairs_stage
from expandr_core.stages import reward as reward_stage
from expandr_core.store.artifacts import Artifact
from tasks.data import Data
from tasks.expand import runnable, write_answers, write_candidates
from tasks.pipeline import Pipeline
from tasks.retriever import encode_corpus


def ranks_in_corpus(options: JointLoopOptions) -> bool:
    """Tell whether the reward needs the encoded corpus."""
    return reward_stage.OPTIONS.of(options).ranked


def reward_corpus(pipeline: Pipeline, data: Data) -> Artifact | None:
    """Return the passages among which positives are ranked, or None if the reward needs none.

    Without a collection these are the positives and negatives of the training examples.
    """
    if not ranks_in_corpus(pipeline.options):
        return None
    inputs = {"preference": data.preference, "retriever": data.retriever}
    return data.collection or pipeline.step(
        "example_passages",
        inputs,
        "collect the passages to rank positives in",
        options=example_passages.OPTIONS(),
    ).at(example_passages.CORPUS)


@dataclass(frozen=True)
class Judge:
    """What rewards the candidates: an encoder, and the corpus that it has encoded, if it ranks in it."""

    encoder: Artifact
    embeddings: Artifact | None


def judge_by(pipeline: Pipeline, encoder: Artifact, corpus: Artifact | None) -> Judge:
    """Encode the corpus, if the reward needs it; then it must be given."""
    if not ranks_in_corpus(pipeline.options):
        return Judge(encoder, None)
    assert corpus, "a reward by ranks needs a corpus"
    rewarding = pipeline.changed(retriever=pipeline.options.rewarding)
    title = "to reward the candidates"
    return Judge(encoder, encode_corpus(rewarding, corpus, encoder, title, "reward"))


def make_pairs(
    pipeline: Pipeline,
    queries: Artifact,
    llm: Artifact,
    encoder: Artifact,
    corpus: Artifact | None = None,
) -> Artifact:
    """Let the LLM write candidates and answers, reward them, and choose pairs.

    With `preferences.lazy` it writes for the first shards of the queries only, and for more of them
    until enough pairs are accepted. The pairs are the first of those that all shards would bring, and
    a step finds the shards of the one before.

    Args:
        pipeline: of the run.
        queries: with their positives.
        llm: writes.
        encoder: rewards: the current retriever, or another encoder.
        corpus: see `reward_corpus`.
    """
    options, path = pipeline.options, pipeline.open().local(queries)
    wanted = options.preferences.max_pairs
    sizes = shard_sizes(path, options.expand.queries_per_shard)
    judge = judge_by(pipeline, encoder, corpus)
    first = shards_with(wanted, sizes) if options.preferences.lazy else len(sizes)
    while first < len(sizes):
        some = pipeline.first_shards(first)
        rewards, pairs = _rewarded_pairs(some, queries, llm, judge)
        accepted = int(pairs.counts["accepted"])
        if accepted >= wanted:
            break
        first = next_step(wanted, accepted, first, sizes)
    else:
        rewards, pairs = _rewarded_pairs(pipeline, queries, llm, judge)
    audit_pairs(pipeline, rewards, pairs)
    return pairs


def _rewarded_pairs(
    pipeline: Pipeline, queries: Artifact, llm: Artifact, judge: Judge
) -> tuple[Artifact, Artifact]:
    """Make the rewards and the pairs of the pipeline's shards."""
    candidates = pipeline.submit("candidates", write_candidates, queries, llm)
    answers = None
    if pipeline.options.preferences.self_weight:
        answers = pipeline.submit("answers", write_answers, queries, llm).result()
    rewards = reward(pipeline, candidates.result(), answers, queries, judge)
    return rewards, choose_pairs(pipeline, rewards, partial=pipeline.max_shards > 0)


def reward(
    pipeline: Pipeline,
    candidates: Artifact,
    answers: Artifact | None,
    examples: Artifact,
    judge: Judge,
) -> Artifact:
    """Reward the candidates, by nearness to the positive and to the answer, or by retrieval."""
    options = reward_stage.OPTIONS.of(pipeline.options)
    inputs = {
        "candidates": candidates,
        "answers": answers if options.self_weight else None,
        "examples": examples,
        "retriever": judge.encoder,
        "embeddings": judge.embeddings,
    }
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


def import_pairs(pipeline: Pipeline, llm: Artifact) -> Artifact:
    """Import the pairs of `data.pairs` for a language model, and audit them.

    Raises:
        DataError: if there are none, or too few.
    """
    options = import_stage.OPTIONS.of(pipeline.options)
    inputs, sources = {"llm": runnable(pipeline, llm)["llm"]}, import_stage.source_digests(options)
    title = "import the pairs"
    pairs = pipeline.step("import_pairs", inputs, title, options=options, sources=sources)
    audit_pairs(pipeline, None, pairs)
    return pairs


def audit_pairs(pipeline: Pipeline, rewards: Artifact | None, pairs: Artifact) -> Artifact:
    """Show in Prefect what the pairs are like, and stop if nothing should be trained on them.

    Args:
        pipeline: of the run.
        rewards: that the pairs were chosen from; None if they are imported.
        pairs: to audit.

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
