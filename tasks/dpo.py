"""Align the language model with the pairs."""

from expandr_core.stages import dpo, merge
from expandr_core.store.artifacts import Artifact
from tasks.expand import chat_of, runnable
from tasks.pipeline import Pipeline


def align(pipeline: Pipeline, llm: Artifact, pairs: Artifact) -> Artifact:
    """Train an adapter by DPO; return the language model with it, merged if the options say so.

    The prompt is the one that the texts were written for.
    """
    options, chat, start = pipeline.options, chat_of(pipeline, llm), runnable(pipeline, llm)
    training = dpo.OPTIONS.of(options, chat)
    adapter = pipeline.step("dpo", start | {"pairs": pairs}, "align by DPO", options=training)
    if not options.dpo.merge:
        return adapter
    inputs = {"llm": start["llm"], "adapter": adapter}
    return pipeline.step("merge", inputs, "merge the adapter", options=merge.OPTIONS(chat=chat))
