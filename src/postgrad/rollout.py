"""Examples and an engine to trajectories. A failed rollout is data, not a crash."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from postgrad.protocols import Grader, RolloutEngine
from postgrad.text.template import Renderer
from postgrad.types import Example, GenerationRequest, Group, SamplingParams, Trajectory, Turn


async def rollout_groups(
    examples: Sequence[Example],
    engine: RolloutEngine,
    renderer: Renderer,
    params: SamplingParams,
    *,
    group_size: int,
    seed: int,
) -> list[Group]:
    """`group_size` single-turn answers to each example's prompt.

    An answer depends on its example, its place in the group and `seed`, not on the other examples.
    """
    prompts = [renderer.render_prompt(e.prompt) for e in examples]
    requests = [
        GenerationRequest(prompt, params, request_seed(seed, example.id, i))
        for example, prompt in zip(examples, prompts, strict=True)
        for i in range(group_size)
    ]
    completions = await engine.generate(requests)
    groups = []
    for e, example in enumerate(examples):
        trajectories = tuple(
            Trajectory(
                id=f"{example.id}/{seed}/{i}",
                turns=(Turn(prompts[e], completion),),
                status="truncated" if completion.finish_reason == "length" else "completed",
            )
            for i, completion in enumerate(completions[e * group_size : (e + 1) * group_size])
        )
        groups.append(Group(example, trajectories))
    return groups


async def grade_groups(groups: Sequence[Group], graders: Sequence[Grader]) -> list[Group]:
    """Every grader's scores added to every trajectory."""
    graded = []
    for group in groups:
        by_grader = [await grader.grade(group) for grader in graders]
        graded.append(
            replace(
                group,
                trajectories=tuple(
                    replace(t, scores=t.scores + tuple(scores[i] for scores in by_grader))
                    for i, t in enumerate(group.trajectories)
                ),
            )
        )
    return graded


def request_seed(seed: int, example_id: str, sibling: int) -> int:
    digest = hashlib.sha256(f"{seed}\0{example_id}\0{sibling}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
