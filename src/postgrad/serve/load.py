"""Models by name, ready to generate."""

from __future__ import annotations

from pathlib import Path

from postgrad.engine.local import LocalEngine
from postgrad.errors import ConfigError
from postgrad.gates.release import ReleasePointer
from postgrad.models.load import load_policy
from postgrad.models.pull import resolve
from postgrad.text import Renderer, load_tokenizer


def find_model(model: str | None, workspace: Path) -> tuple[Path, str]:
    """Directory and name of a model; of the workspace's released policy where none is named.

    Raises:
        ConfigError: no such model, or nothing released.
    """
    if model is not None:
        return resolve(model), model
    released = ReleasePointer(workspace).read()
    if released is None:
        raise ConfigError(
            f"workspace {str(workspace)!r} has released no policy yet; name a model, such as smollm2-135m, "
            "or run `postgrad quickstart`"
        )
    return workspace / released.checkpoint, released.round_id


def load_engine(path: Path) -> tuple[LocalEngine, Renderer, int]:
    """Engine, renderer and context length of a model directory."""
    renderer = Renderer(load_tokenizer(path))
    model = load_policy(path).requires_grad_(False)
    return LocalEngine(model, stop_ids=renderer.stop_ids, decode=renderer.decode), renderer, model.context
