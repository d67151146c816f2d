"""What tests of several folders share."""

import os
import shutil
from pathlib import Path

import hypothesis
import pytest

# Threads that share a tiny matrix only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What is tested is the CPU, to the last bit.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
# Another process's turn on the processor is no slow example.
hypothesis.settings.register_profile("suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("suite")


@pytest.fixture(scope="session")
def tiny_model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from postgrad.testing import tiny_model

    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def new_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from postgrad.db.engine import open_database, sqlite_url

    path = tmp_path_factory.mktemp("new") / "labels.db"
    open_database(sqlite_url(path)).dispose()
    return path


@pytest.fixture
def labels_url(tmp_path: Path, new_sqlite: Path) -> str:
    """A SQLite database at the newest schema and without rows: a copy, because migrating takes longer than a test."""
    from postgrad.db.engine import sqlite_url

    return sqlite_url(Path(shutil.copyfile(new_sqlite, tmp_path / "labels.db")))
