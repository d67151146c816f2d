import json
from pathlib import Path

import pytest

from postgrad.errors import GateFailed, StoreError
from postgrad.gates.release import ReleasePointer

PASS = {"verdict": "pass", "candidate": "rl", "reasons": ["rl beats initial"]}


def promote(pointer: ReleasePointer, number: int) -> None:
    round_id = f"{number:04d}-test"
    pointer.promote(PASS, round_id=round_id, checkpoint=f"rounds/{round_id}/stages/rl/policy", sha256=f"{number:064x}")


def test_before_the_first_release_there_is_none(tmp_path: Path) -> None:
    pointer = ReleasePointer(tmp_path)
    assert (pointer.read(), pointer.history()) == (None, [])


def test_a_pass_moves_the_pointer_and_keeps_the_history_oldest_first(tmp_path: Path) -> None:
    pointer = ReleasePointer(tmp_path / "new")
    for number in (1, 2, 3):
        promote(pointer, number)
    current = ReleasePointer(tmp_path / "new").read()
    assert current is not None
    assert (current.round_id, current.player, current.sha256) == ("0003-test", "rl", f"{3:064x}")
    assert current.checkpoint == "rounds/0003-test/stages/rl/policy"
    assert [r.round_id for r in pointer.history()] == ["0001-test", "0002-test"]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["release.json"]


def test_promoting_the_same_round_again_changes_nothing(tmp_path: Path) -> None:
    pointer = ReleasePointer(tmp_path)
    promote(pointer, 1)
    before = (tmp_path / "release.json").read_bytes()
    promote(pointer, 1)
    assert (tmp_path / "release.json").read_bytes() == before


@pytest.mark.parametrize("verdict", ["fail", "investigate"])
def test_without_a_pass_the_pointer_stays_and_the_reasons_are_told(tmp_path: Path, verdict: str) -> None:
    pointer = ReleasePointer(tmp_path)
    promote(pointer, 1)
    gate = {"verdict": verdict, "candidate": "rl", "reasons": ["kl is 30, beyond 20", "repetition is missing"]}
    with pytest.raises(GateFailed, match=f"round 0002-test may not be released, the gate says {verdict}: kl is 30, "):
        pointer.promote(gate, round_id="0002-test", checkpoint="x", sha256="y")
    current = pointer.read()
    assert current is not None
    assert current.round_id == "0001-test"


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"current": {"round": 1}, "history": []})])
def test_a_damaged_pointer_is_named_and_not_overwritten(tmp_path: Path, content: str) -> None:
    (tmp_path / "release.json").write_text(content)
    pointer = ReleasePointer(tmp_path)
    with pytest.raises(StoreError, match=r"release\.json' is damaged; remove it, then run the round's gate again"):
        promote(pointer, 1)
    assert (tmp_path / "release.json").read_text() == content


def test_a_workspace_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"file/release\.json' cannot be "):
        promote(ReleasePointer(tmp_path / "file"), 1)
