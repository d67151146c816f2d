"""What tests of several folders share."""

import os
from pathlib import Path

import pytest

# Threads that share a tiny matrix only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What is tested is the CPU, to the last bit.
os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session")
def tiny_model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from postgrad.testing import tiny_model

    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")
