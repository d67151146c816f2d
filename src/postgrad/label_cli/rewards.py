"""What a reward model makes of stored answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from postgrad.feedback.records import Sample
    from postgrad.feedback.store import LabelStore
    from postgrad.text.template import Renderer
    from postgrad.types import Comparison, Conversation

REWARD_MODEL_HELP = "Directory of a reward model, or the round that trained it: its id, its number, latest."
RewardModel = Annotated[str | None, typer.Option(metavar="MODEL", help=REWARD_MODEL_HELP)]


def reward_model_directory(name: str, workspace: Path) -> Path:
    """A directory as it is; else that of a round of the workspace.

    Raises:
        StoreError: neither is there.
        DataError: it holds no model.
    """
    from postgrad.models.pull import check_model_directory
    from postgrad.rounds.manifest import find_round

    path = Path(name).expanduser()
    if not (path / "config.json").is_file():
        path = find_round(workspace, name).stage_directory("reward") / "model"
    return check_model_directory(path)


def score_answers(store: LabelStore, comparisons: Sequence[Comparison], directory: Path) -> dict[str, float]:
    """The reward of every answer of some comparisons, by sample id; answers beyond the model's context have none."""
    from rich.console import Console
    from rich.progress import Progress

    from postgrad.graders.certificate import length_trend
    from postgrad.methods.reward import Ranked, score
    from postgrad.models.load import load_reward_model
    from postgrad.text import Renderer, load_tokenizer

    renderer = Renderer(load_tokenizer(directory))
    model = load_reward_model(directory)
    names: list[list[str]] = []
    groups: list[Ranked] = []
    for prompt, samples in _by_prompt(store, comparisons):
        prompt_ids = renderer.render_prompt(prompt)
        rendered = {s.id: (*prompt_ids, *_answer_ids(renderer, s)) for s in samples}
        fitting = {name: ids for name, ids in rendered.items() if len(ids) <= model.context}
        if fitting:
            names.append(list(fitting))
            groups.append(Ranked(len(prompt_ids), tuple(fitting.values()), ()))
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as live:
        bar = live.add_task("scoring answers", total=len(groups))
        rewards = score(
            model, groups, lambda done, total: live.update(bar, completed=done), trend=length_trend(directory)
        )
    return {name: r for own, given in zip(names, rewards, strict=True) for name, r in zip(own, given, strict=True)}


def _by_prompt(store: LabelStore, comparisons: Sequence[Comparison]) -> Iterator[tuple[Conversation, list[Sample]]]:
    sources = {source for c in comparisons for source in c.sources}
    samples = {s.id: s for s in store.samples_of(sources)}
    groups: dict[str, tuple[Conversation, dict[str, Sample]]] = {}
    for c in comparisons:
        for source in c.sources:
            sample = samples[source]
            groups.setdefault(sample.prompt_id, (c.prompt, {}))[1][source] = sample
    return ((prompt, list(found.values())) for prompt, found in groups.values())


def _answer_ids(renderer: Renderer, sample: Sample) -> tuple[int, ...]:
    """The very ids that were sampled, where they are this tokenizer's; else those of the text."""
    if sample.token_ids and renderer.decode(sample.token_ids) == sample.text:
        return sample.token_ids
    return (*renderer.tokenizer.encode(sample.text, add_special_tokens=False), renderer.end_id)
