"""The release pointer: which checkpoint serves, and which served before."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from postgrad.errors import GateFailed, StoreError

POINTER = "release.json"


@dataclass(frozen=True, slots=True)
class Release:
    round_id: str
    player: str
    """The arena's name of the policy."""
    checkpoint: str
    """Directory, relative to the workspace."""
    sha256: str
    """Of the weights."""
    released_at: str


class ReleasePointer:
    """`release.json` of a workspace: {"current": release, "history": [releases, oldest first]}."""

    def __init__(self, workspace: Path) -> None:
        self._path = workspace / POINTER

    def read(self) -> Release | None:
        """The current release, or None before the first."""
        stored = self._load()
        return Release(**stored["current"]) if stored else None

    def history(self) -> list[Release]:
        """Former releases, oldest first."""
        stored = self._load()
        return [Release(**former) for former in stored["history"]] if stored else []

    def promote(self, gate: Mapping[str, Any], *, round_id: str, checkpoint: str, sha256: str) -> Release:
        """Point at the candidate that `gate` passed; doing so twice changes nothing.

        Raises:
            GateFailed: the verdict is not pass; the pointer has not moved.
            StoreError: the pointer cannot be read or written.
        """
        if gate["verdict"] != "pass":
            why = "; ".join(gate["reasons"])
            raise GateFailed(f"round {round_id} may not be released, the gate says {gate['verdict']}: {why}")
        current, history = self.read(), self.history()
        if current is not None and (current.round_id, current.sha256) == (round_id, sha256):
            return current
        release = Release(
            round_id, gate["candidate"], checkpoint, sha256, datetime.now(UTC).isoformat(timespec="seconds")
        )
        former = history if current is None else [*history, current]
        self._write({"current": asdict(release), "history": [asdict(f) for f in former]})
        return release

    def _load(self) -> dict[str, Any] | None:
        try:
            stored = json.loads(self._path.read_text(encoding="utf-8"))
            Release(**stored["current"])
            for former in stored["history"]:
                Release(**former)
        except FileNotFoundError:
            return None
        except OSError as e:
            raise StoreError(f"the release pointer {str(self._path)!r} cannot be read: {e.strerror}") from e
        except (ValueError, TypeError, KeyError) as e:
            raise StoreError(
                f"the release pointer {str(self._path)!r} is damaged; remove it, then run the round's gate again"
            ) from e
        assert isinstance(stored, dict)
        return stored

    def _write(self, content: Mapping[str, Any]) -> None:
        """Replace the file in one step: a reader sees the old pointer or the new one, after a power cut too."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self._path.parent, prefix=f".{POINTER}.")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    json.dump(content, file, indent=2)
                    file.flush()
                    os.fsync(file.fileno())
                Path(temporary).replace(self._path)
            finally:
                Path(temporary).unlink(missing_ok=True)
            _sync_directory(self._path.parent)
        except OSError as e:
            raise StoreError(f"the release pointer {str(self._path)!r} cannot be written: {e.strerror}") from e


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
