"""Reward the candidates and choose the preference pairs."""

from expandr_core.artifacts import Artifact
from expandr_core.options import PreferenceOptions, RetrieverOptions
from expandr_core.stages import reward as stage
from tasks.stage import Workspace


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
        stage.OPTIONS(encoding=options.encoding),
        {
            "candidates": candidates,
            "answers": answers,
            "examples": examples,
            "retriever": retriever,
        },
    )


def choose_pairs(
    work: Workspace, rewards: Artifact, options: PreferenceOptions, when: str = ""
) -> Artifact:
    """Choose each query's best and worst candidate."""
    return work.make(f"choose pairs{when}", "pairs", options, {"rewards": rewards})
