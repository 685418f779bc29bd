"""Align the language model with the pairs."""

from expandr_core.options.loop import JointLoopOptions
from expandr_core.stages import dpo as stage
from expandr_core.stages import merge
from expandr_core.store.artifacts import Artifact
from tasks.stage import Workspace


def align(
    work: Workspace,
    llm: Artifact,
    pairs: Artifact,
    options: JointLoopOptions,
    when: str = "",
) -> Artifact:
    """Train an adapter by DPO; return the language model with it, merged if the options say so.

    The prompt is the one that the texts were written for.
    """
    chat = work.chat(llm, options.llm)
    resolved = stage.OPTIONS.of(options, chat)
    start = work.language_model(llm)
    adapter = work.make(f"align by DPO{when}", "dpo", resolved, start | {"pairs": pairs})
    if not options.dpo.merge:
        return adapter
    inputs = {"llm": start["llm"], "adapter": adapter}
    return work.make(f"merge the adapter{when}", "merge", merge.OPTIONS(chat=chat), inputs)
