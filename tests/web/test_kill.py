"""The load benchmark, small: raters over HTTP while the server is killed with -9."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/label_load.py"
SERVER = "postgresql://postgres@127.0.0.1:5432"


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_server_killed_with_9_loses_doubles_and_overfills_nothing(database: str) -> None:
    if database == "postgresql":
        psycopg = pytest.importorskip("psycopg", reason="the PostgreSQL driver is not installed")
        try:
            psycopg.connect(f"{SERVER}/postgres", connect_timeout=3).close()
        except psycopg.OperationalError as e:
            pytest.skip(f"no PostgreSQL server at 127.0.0.1:5432: {e}")
    sizes = "--raters 6 --tasks 60 --overlap 2 --kills 2 --think 0.2 --lease 2".split()  # noqa: SIM905 - as one types it
    where = ["--db", SERVER] if database == "postgresql" else []
    done = subprocess.run([sys.executable, str(SCRIPT), *sizes, *where], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout[done.stdout.index("{\n") :])
    assert found["kills"] == 2
    assert found["acknowledged"] <= found["stored"] == 120
    nothing = ("acknowledged_but_lost", "doubled", "tasks_over_overlap", "leases_left", "tasks_unfinished")
    assert {key: found[key] for key in nothing} == dict.fromkeys(nothing, 0)
