"""Align the language model with the retriever's preferences, by one of four methods."""

from expandr_core.errors import DataError
from expandr_core.options.generation import ChatOptions
from expandr_core.stages import dpo, kto, merge, sft
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store
from tasks.expand import chat_of, runnable
from tasks.pipeline import Pipeline


def align(pipeline: Pipeline, llm: Artifact, pairs: Artifact | None) -> Artifact:
    """Train an adapter by `align.method`; return the language model with it, merged if so asked.

    The prompt is the one that the texts were written for. Without pairs the model stays as it is.

    Raises:
        DataError: if the method is KTO and the pairs come without rewards.
    """
    if pairs is None:
        return llm
    chat, start = chat_of(pipeline, llm), runnable(pipeline, llm)
    adapter = _train(pipeline, start | {"pairs": pairs}, chat)
    if not pipeline.options.dpo.merge:
        return adapter
    inputs = {"llm": start["llm"], "adapter": adapter}
    return pipeline.step("merge", inputs, "merge the adapter", options=merge.OPTIONS(chat=chat))


def _train(pipeline: Pipeline, inputs: dict[str, Artifact], chat: ChatOptions) -> Artifact:
    """Train one adapter, or one and then another from it; return the last, which contains the first."""
    options = pipeline.options
    if options.align.method == "kto":
        inputs = inputs | {"rewards": rewards_of(pipeline, inputs["pairs"])}
        return pipeline.step("kto", inputs, "align by KTO", options=kto.OPTIONS.of(options, chat))
    if options.align.method != "dpo":
        resolved = sft.OPTIONS.of(options, chat)
        tuned = pipeline.step("sft", inputs, "align by SFT", options=resolved)
        if options.align.method == "sft":
            return tuned
        inputs = inputs | {"adapter": tuned}
    return pipeline.step("dpo", inputs, "align by DPO", options=dpo.OPTIONS.of(options, chat))


def rewards_of(pipeline: Pipeline, pairs: Artifact) -> Artifact:
    """Return the rewards that pairs were chosen from.

    Raises:
        DataError: if there are none, as the pairs were imported.
    """

    def find(store: Store) -> Artifact | None:
        rewards = store.manifest(pairs.key)["inputs"].get("rewards")
        return Artifact(**rewards) if rewards else None

    made = [step.artifact for step in pipeline.steps if step.id.stage == "reward"]
    rewards = pipeline.ask(find, predicted=made[-1] if made else None)
    if rewards is None:
        raise DataError(
            f"align.method kto learns from the rewards of all candidates, and {pairs.key} has none: "
            "these pairs were imported; set align.method to dpo, sft or sft+dpo"
        )
    return rewards
