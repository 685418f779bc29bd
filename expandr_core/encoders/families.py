"""Families of retrievers, each a module that recognises its model folders and imports them.

Whatever a retriever was, its import is a sentence-transformers model whose configuration says how it is
used: modules, pooling, prompts, longest text and similarity. Everything downstream reads that alone.
"""

from pathlib import Path
from typing import Protocol

from expandr_core.encoders import anchordr_checkpoint, plain, sentence_transformer
from expandr_core.encoders.check import check_retriever
from expandr_core.options.retriever import ConventionOptions, Similarity


class Family(Protocol):
    """What a module of a family has."""

    def claims(self, folder: Path) -> bool:
        """Tell whether a model folder is of this family."""
        ...

    def import_into(
        self, folder: Path, out: Path, options: ConventionOptions, similarity: Similarity
    ) -> None:
        """Write a complete sentence-transformers model.

        Args:
            folder: a copy of the model; its files may be moved.
            out: an empty folder.
            options: how the model is used, where its folder does not say.
            similarity: how its vectors are compared, where its folder does not say.

        Raises:
            DataError: if the model cannot be used.
        """
        ...


FAMILIES: tuple[Family, ...] = (anchordr_checkpoint, sentence_transformer, plain)


def import_retriever(
    folder: Path, out: Path, options: ConventionOptions, similarity: Similarity
) -> None:
    """Import a model by the first family that claims its folder, and try it; see `Family`."""
    family = next(family for family in FAMILIES if family.claims(folder))
    family.import_into(folder, out, options, similarity)
    check_retriever(out, similarity)
