"""The two teachers of method "iterate": whoever edits the answers, and the choice of the best of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from postgrad.config.iterate import EditsConfig
from postgrad.errors import DataError
from postgrad.feedback.editors import make_editors
from postgrad.feedback.queue import LabelQueue
from postgrad.feedback.records import Sample
from postgrad.feedback.store import LabelStore
from postgrad.feedback.tasks import NewTask
from postgrad.feedback.utility import Utility
from postgrad.feedback.utility import words as words_of
from postgrad.methods.sft import Rendered
from postgrad.rounds.context import last_user_text, worth, write_lines
from postgrad.run import read_json_lines
from postgrad.text.template import Renderer, check_fits
from postgrad.types import Edit, Example, Group, Message


@dataclass(frozen=True)
class Lesson:
    """One answer to learn."""

    id: str
    """Of the prompt."""
    prompt: str
    before: str
    """The answer that was edited, or the worst of its siblings."""
    after: str
    ids: tuple[int, ...]
    mask: tuple[bool, ...]


Lessons = tuple[list[Lesson], dict[str, Any]]
"""With what there is to say of them."""


def lessons_of_the_best(groups: Sequence[Group], *, min_reward: float | None) -> Lessons:
    """The first of the answers with the highest reward, token for token as it was sampled.

    An answer that the token limit cut off is no example, nor is one that nobody graded; a group in which none is left,
    or none gets `min_reward`, teaches nothing.
    """
    lessons, rewards, chosen = [], [], []
    for group in groups:
        graded = [(t.reward, t) for t in group.trajectories if t.reward is not None]
        rewards += [reward for reward, _ in graded]
        whole = [(reward, t) for reward, t in graded if t.status == "completed"]
        if not whole:
            continue
        reward, best = max(whole, key=lambda pair: pair[0])
        if min_reward is not None and reward < min_reward:
            continue
        chosen.append(reward)
        (turn,) = best.turns
        _, worst = min(graded, key=lambda pair: pair[0])
        num_prompt, num_answer = len(turn.prompt_ids), len(turn.completion.token_ids)
        lessons.append(
            Lesson(
                group.example.id,
                last_user_text(group.example.prompt),
                worst.turns[-1].completion.text,
                turn.completion.text,
                (*turn.prompt_ids, *turn.completion.token_ids),
                (False,) * num_prompt + (True,) * num_answer,
            )
        )
    return lessons, {
        "prompts": len(groups),
        "without_a_lesson": len(groups) - len(lessons),
        "reward_mean": fmean(rewards) if rewards else None,
        "reward_of_the_chosen": fmean(chosen) if chosen else None,
    }


def lessons_of_edits(
    samples: Sequence[tuple[Example, Sample]],
    edits: Mapping[str, str],
    weights: Utility,
    renderer: Renderer,
    *,
    context: int,
) -> Lessons:
    """Edited answers as demonstrations; answers without a usable edit are counted, not learned."""
    lessons, before, after, unusable = [], [], [], 0
    for example, sample in samples:
        text = edits.get(sample.id)
        if text is None:
            continue
        try:
            taught = replace(example, completion=(Message("assistant", text),))
            ids, mask = renderer.render_example(taught)
            check_fits(ids, context, example.id)
        except DataError:
            unusable += 1
            continue
        before.append(worth(example, sample.text, sample.finish_reason, weights))
        after.append(worth(example, text, "stop", weights))
        lessons.append(Lesson(example.id, last_user_text(example.prompt), sample.text, text, ids, mask))
    return lessons, {
        "answers": len(samples),
        "without_an_edit": len(samples) - len(lessons) - unusable,
        "unusable_edits": unusable,
        "changed": fmean(x.before != x.after for x in lessons) if lessons else None,
        "utility_before": fmean(before) if before else None,
        "utility_after": fmean(after) if after else None,
    }


def write_lessons(lessons: Sequence[Lesson], path: Path) -> None:
    """One a line, beside what was answered."""
    write_lines(
        path,
        (
            {"id": x.id, "prompt": x.prompt, "before": x.before, "after": x.after, "ids": x.ids, "mask": x.mask}
            for x in lessons
        ),
    )


def read_lessons(path: Path) -> list[Rendered]:
    rows = read_json_lines(path)
    return [(tuple(row["ids"]), tuple(row["mask"])) for row in rows]


def collect_edits(
    store: LabelStore,
    samples: Sequence[tuple[Example, Sample]],
    cfg: EditsConfig,
    weights: Utility,
    *,
    seed: int,
    workspace: Path,
) -> dict[str, str]:
    """Sample -> its text as it was last edited; the samples, of one stage of one round, are in the store.

    Raises:
        DataError: people are still to edit some.
    """
    round_id, stage = samples[0][1].round_id, samples[0][1].stage
    if cfg.by == "people":
        _ask_for_edits(store, [sample for _, sample in samples], round_id=round_id, workspace=workspace)
    else:
        _simulate_edits(store, samples, cfg, weights, seed=seed)
    return {edit.sample_id: edit.text for edit in store.edits(round_id=round_id, stage=stage)}


def _simulate_edits(
    store: LabelStore, samples: Sequence[tuple[Example, Sample]], cfg: EditsConfig, weights: Utility, *, seed: int
) -> None:
    """Every answer goes to one editor; their edits are stored as those of simulated raters."""
    editors = make_editors(cfg.num_editors, seed=seed, carelessness=cfg.careless_frac)
    store.add_raters("simulated", {editor.id: editor.params() for editor in editors})
    edits = []
    for n, (example, sample) in enumerate(samples):
        if not words_of(sample.text):
            continue  # nothing to mend
        editor = editors[n % len(editors)]
        text = editor.edit(
            sample.id,
            sample.text,
            finish_reason=sample.finish_reason,
            prompt=last_user_text(example.prompt),
            reference=example.target,
            constraints=example.metadata.get("constraints", ()),
            weights=weights,
        )
        edits.append(Edit(sample.id, editor.id, sample.text, text))
    store.record_edits(edits)


def _ask_for_edits(store: LabelStore, samples: Sequence[Sample], *, round_id: str, workspace: Path) -> None:
    """Put every answer into the queue once.

    Raises:
        DataError: edits are still missing; the sentence says how to give them.
    """
    queue = LabelQueue(store)
    queue.add([NewTask("edit", sample.id) for sample in samples], round_id=round_id)
    waiting = queue.waiting("edit", round_id=round_id, sample_ids=[sample.id for sample in samples])
    if waiting:
        raise DataError(
            f"round {round_id}: {waiting} of {len(samples)} answers wait for an edit; run "
            f"`postgrad label serve --workspace {workspace}`, correct them there (or close their tasks), and run the "
            "same command again"
        )
