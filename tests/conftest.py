"""What tests of several modules share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def llm_folder(tmp_path_factory) -> Path:
    """The folder of a tiny language model with random weights; do not write into it."""
    from tiny_models import save_llm

    return save_llm(tmp_path_factory.mktemp("llm") / "model")
