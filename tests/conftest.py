"""What tests of several folders share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from postgrad.testing import tiny_model

    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")
