"""Models by name, ready to generate."""

from __future__ import annotations

from pathlib import Path

from postgrad.engine.local import LocalEngine
from postgrad.errors import ConfigError
from postgrad.gates.release import ReleasePointer
from postgrad.models.load import load_policy
from postgrad.models.pull import resolve
from postgrad.rounds.manifest import Manifest
from postgrad.text import Renderer, load_tokenizer


def find_model(model: str | None, workspace: Path) -> tuple[Path, str]:
    """Directory and name of a model, or of a round's last policy; of the workspace's released one where none is named.

    Raises:
        ConfigError: no such model, a round without a policy, or nothing released.
    """
    if model is not None:
        directory = workspace / "rounds" / model
        if not (directory / "manifest.json").is_file():
            return resolve(model), model
        policy = Manifest.load(directory).policy
        if policy is None:
            raise ConfigError(f"round {model!r} has made no policy yet; run its recipe again to go on with it")
        return policy, model
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
