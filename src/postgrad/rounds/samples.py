"""The trajectories that a stage saved, as a person reads them: what was asked, what came back, what it was worth.

Whatever models, graders and data wrote is shown as inert text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from postgrad.errors import DataError
from postgrad.rounds.manifest import Manifest
from postgrad.rounds.numbers import format_number
from postgrad.run import RunDirectory

JOINERS = "\u200c\u200d"
"""Invisible, and part of ordinary writing: of Persian and of emoji."""

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Saved:
    """One step's trajectories, and the metrics of that step where it came to an end."""

    round_id: str
    stage: str
    step: int
    steps: Sequence[int]
    """All that were saved in this stage."""
    records: Sequence[Record]
    metrics: Mapping[str, float]


def load_samples(manifest: Manifest, *, stage: str | None, step: int | None) -> Saved:
    """What a stage saved at a step; the last stage that saved any, and its last step, where they are not named.

    Raises:
        DataError: nothing was saved there; the message says what was.
    """
    runs = {s.name: RunDirectory(manifest.stage_directory(s.name)) for s in manifest.record.stages}
    having = {name: run.saved_steps() for name, run in runs.items() if run.saved_steps()}
    if not having:
        raise DataError(f"round {manifest.record.id} has saved no trajectories yet; its 'rl' stage does")
    if stage is None:
        stage = list(having)[-1]
    if stage not in having:
        raise DataError(
            f"stage {stage!r} of round {manifest.record.id} saved no trajectories; --stage {' or '.join(having)} did"
        )
    steps = having[stage]
    if step is None:
        step = steps[-1]
    if step not in steps:
        raise DataError(
            f"stage {stage!r} of round {manifest.record.id} saved no trajectories at step {step}; "
            f"there are those of {ranges(steps)}"
        )
    records = runs[stage].read_trajectories(step)
    metrics = next((row for row in runs[stage].read_metrics() if row["step"] == step), {})
    return Saved(manifest.record.id, stage, step, steps, records, metrics)


def choose(
    records: Sequence[Record],
    *,
    prompt: str = "",
    name: str | None = None,
    best: int | None = None,
    worst: int | None = None,
    longest: int | None = None,
) -> list[Record]:
    """Those whose prompt contains `prompt` and whose example's or own id is `name`, as saved or as ordered.

    Args:
        records: as saved.
        prompt: any letter case.
        name: id of an example or of one trajectory.
        best: so many, highest reward first; those without a reward are left out.
        worst: so many, lowest reward first.
        longest: so many, most tokens first.

    Raises:
        DataError: nothing is left.
    """
    found = [
        record
        for record in records
        if prompt.casefold() in record["prompt"].casefold() and name in (None, record["example_id"], record["id"])
    ]
    if not found:
        what = f"the id {name!r}" if name is not None else f"{prompt!r} in its prompt"
        raise DataError(f"none of the {len(records)} answers of this step has {what}")
    if best is not None or worst is not None:
        rewarded = [record for record in found if record["reward"] is not None]
        if not rewarded:
            raise DataError(f"none of {len(found)} answers has a reward; leave out --best and --worst")
        ordered = sorted(rewarded, key=lambda record: record["reward"], reverse=best is not None)
        return ordered[: best if best is not None else worst]
    if longest is not None:
        return sorted(found, key=num_tokens, reverse=True)[:longest]
    return found


def num_tokens(record: Record) -> int:
    """Tokens that the policy wrote, over all turns."""
    return sum(len(turn["token_ids"]) for turn in record["turns"])


def overview(saved: Saved) -> Text:
    """One paragraph about the step as a whole."""
    rewards = [record["reward"] for record in saved.records if record["reward"] is not None]
    versions = sorted({turn["policy_version"] for record in saved.records for turn in record["turns"]})
    prompts = len({record["group"] for record in saved.records})
    said = [f"{saved.round_id}, {saved.stage}, step {saved.step}: {len(saved.records)} answers to {prompts} prompts"]
    if versions:
        said.append(f"policy version {ranges(versions)}")
    if rewards:
        low, mean, high = (format_number(r) for r in (min(rewards), sum(rewards) / len(rewards), max(rewards)))
        said.append(f"reward {low} to {high}, mean {mean}")
    if "policy/kl_ref" in saved.metrics:
        said.append(f"KL from the reference {format_number(saved.metrics['policy/kl_ref'])} nats an answer")
    return Text(f"{'; '.join(said)}. Saved steps: {ranges(saved.steps)}.")


def as_texts(records: Sequence[Record], *, tokens: bool) -> Iterator[RenderableType]:
    """One piece a trajectory; a prompt stands before the first of the siblings that follow each other.

    Args:
        records: in the order in which they are shown.
        tokens: show every token's id and its logprob in nats.
    """
    before = None
    for record in records:
        if record["group"] != before:
            turns = [_line(f"{m['role']}: {m['content']}", "", 0) for m in record["messages"]]
            yield Group(Text(inert(record["example_id"]), style="bold"), *turns, Text(""))
        before = record["group"]
        yield _as_text(record, tokens=tokens)


def as_json_lines(records: Sequence[Record]) -> Iterator[str]:
    """The records as they were saved, one a line, in ASCII."""
    return (json.dumps(record) for record in records)


def inert(text: str) -> str:
    """Whatever could move the cursor, colour the screen or reorder the line, as the escape that names it."""
    return "".join(c if c.isprintable() or c == "\n" or c in JOINERS else _escape(c) for c in text)


def ranges(numbers: Sequence[int]) -> str:
    """1, 2, 3, 7 is "1 to 3, 7"."""
    runs = [[n for _, n in run] for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}" if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


def _as_text(record: Record, *, tokens: bool) -> RenderableType:
    parts: list[RenderableType] = [_line(_facts(record), "cyan", 2)]
    for turn in record["turns"]:
        parts.append(_line(turn["text"] or "(empty)", "", 4))
        if tokens:
            pairs = zip(turn["token_ids"], turn["logprobs"], strict=True)
            parts.append(_line("  ".join(f"{token} {logprob:.3f}" for token, logprob in pairs), "magenta", 4))
        for message in turn["feedback"]:
            parts.append(_line(f"{message['role']}: {message['content']}", "dim", 4))
    if record["error"]:
        parts.append(_line(f"error: {record['error']}", "red", 4))
    for score in record["scores"]:
        value = "abstained" if score["value"] is None else format_number(score["value"])
        weight = "" if score["weight"] == 1 else f" (weight {format_number(score['weight'])})"
        why = f": {score['explanation']}" if score["explanation"] else ""
        parts.append(_line(f"{score['grader']} {value}{weight}{why}", "green", 4))
    return Group(*parts, Text(""))


def _facts(record: Record) -> str:
    """Ids, reward, length and end of a trajectory in one line."""
    reasons = {"stop": "ended", "length": "cut at the limit", "cancelled": "cancelled"}
    turns = record["turns"]
    facts = [record["id"], f"reward {format_number(record['reward'])}"]
    if turns:
        reason = turns[-1]["finish_reason"]
        facts += [f"{num_tokens(record)} tokens", reasons.get(reason, reason)]
    if record["status"] == "errored" or not turns:
        facts.append(record["status"])
    return "  ".join(facts)


def _line(text: str, style: str, indent: int) -> Padding:
    return Padding(Text(inert(text), style=style), (0, 0, 0, indent), expand=False)


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
