"""AnchorDR, the retriever of the paper: a T5 whose decoder reads one token. Importable alone."""

from expandr_core.anchordr.model import AnchorDR

__all__ = ["AnchorDR"]
