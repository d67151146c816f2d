"""The stages of a round that judge: the arena and the gate."""

from __future__ import annotations

import asyncio
from itertools import combinations
from pathlib import Path
from typing import Any

from postgrad.evals.arena import Answer, Judgement, arena_summary, outcome
from postgrad.feedback.records import Sample, Submission
from postgrad.feedback.utility import UNREWARDED, Utility, utility
from postgrad.gates.promote import decide
from postgrad.gates.release import Release, ReleasePointer
from postgrad.graders.certificate import weights_sha256
from postgrad.models.load import load_policy
from postgrad.rollout import request_seed
from postgrad.rounds.context import (
    Context,
    completions,
    last_user_text,
    measure,
    rater_pool,
    read_splits,
    sample_all,
    wanted,
    worth,
    write_json,
    write_lines,
)
from postgrad.rounds.manifest import Stage
from postgrad.run import sha256_file, sha256_tree
from postgrad.types import Completion, Example, SamplingParams

CANDIDATE = "rl"


def arena_stage(ctx: Context, stage: Stage, released: Release | None) -> None:
    """Every policy answers the same held-out prompts; raters who labelled nothing else compare them, in both orders."""
    splits = read_splits(ctx.source, ctx.recipe.data.system)
    examples = splits["heldout"][: ctx.recipe.arena.num_prompts]
    unseen = splits["heldout_unseen"][: ctx.recipe.arena.num_prompts]
    players = _players(ctx, released)
    answers = {player: _answers(ctx, player, path, [*examples, *unseen]) for player, path in players.items()}
    stage.add_tokens(generated=sum(len(c.token_ids) for given in answers.values() for c in given))
    judged = {player: given[: len(examples)] for player, given in answers.items()}
    judgements = _judge(ctx, examples, judged, {player: weights_sha256(path) for player, path in players.items()})
    measured = [
        Answer(
            prompt_id=example.id,
            player=player,
            num_tokens=len(completion.token_ids),
            truncated=completion.finish_reason == "length",
            measures=_measures(example, completion, wanted(ctx.recipe.labels)),
        )
        for player, given in answers.items()
        for example, completion in zip([*examples, *unseen], given, strict=True)
    ]
    arena = arena_summary(
        judgements,
        measured,
        players=tuple(players),
        unrewarded=UNREWARDED,
        resamples=ctx.recipe.arena.resamples,
        seed=request_seed(ctx.recipe.seed, "bootstrap", 0),
    )
    write_json(stage.directory / "arena.json", arena)
    write_lines(
        stage.directory / "answers.jsonl",
        (
            {
                "prompt_id": example.id,
                "prompt": last_user_text(example.prompt),
                "constraints": list(example.metadata.get("constraints", ())),
                "reference": example.target,
                "answers": {
                    player: {
                        "text": given[i].text,
                        "tokens": len(given[i].token_ids),
                        "finish_reason": given[i].finish_reason,
                    }
                    for player, given in answers.items()
                },
                "utility": {
                    player: round(worth(example, given[i].text, given[i].finish_reason, wanted(ctx.recipe.labels)), 4)
                    for player, given in answers.items()
                },
            }
            for i, example in enumerate(examples)
        ),
    )
    stage.summary = arena


def gate_stage(ctx: Context, stage: Stage, workspace: Path, released: Release | None) -> None:
    """The verdict, its evidence, and, on a pass, the release pointer."""
    arena_files = ctx.manifest.stage_directory("arena")
    rl = ctx.manifest.find("rl")
    arena = ctx.manifest.find("arena")
    assert rl is not None
    assert arena is not None
    gate = decide(
        arena.summary,
        rl.summary,
        ctx.recipe.gate,
        candidate=CANDIDATE,
        incumbent=_incumbent(ctx, released),
        evidence={name: sha256_file(arena_files / name) for name in ("arena.json", "answers.jsonl")},
    )
    write_json(stage.directory / "gate.json", gate)
    stage.summary = gate
    if gate["verdict"] == "pass":
        policy = ctx.policy_directory(CANDIDATE)
        ReleasePointer(workspace).promote(
            gate, round_id=ctx.round_id, checkpoint=str(policy.relative_to(workspace)), sha256=sha256_tree(policy)
        )


def _players(ctx: Context, released: Release | None) -> dict[str, Path]:
    """Oldest first; a release that is not this round's initial policy has to be beaten too."""
    players = {"initial": ctx.initial}
    if _incumbent(ctx, released) == "released":
        assert released is not None
        players["released"] = ctx.manifest.directory.parent.parent / released.checkpoint
    return players | {player: ctx.policy_directory(player) for player in ("sft", CANDIDATE)}


def _incumbent(ctx: Context, released: Release | None) -> str:
    if released is None or released.sha256 == ctx.manifest.record.model["sha256"]:
        return "initial"
    if released.round_id != ctx.round_id:
        return "released"
    # Cut off between the promotion and the end of the gate: the incumbent is the one that the arena saw.
    arena = ctx.manifest.find("arena")
    return "released" if arena is not None and "released" in arena.summary["players"] else "initial"


def _version(ctx: Context, player: str) -> int:
    """Updates behind a player of this round; of one from elsewhere, nothing is known."""
    stage = ctx.manifest.find(player)
    return 0 if stage is None else stage.policy_version or 0


def _answers(ctx: Context, player: str, path: Path, examples: list[Example]) -> list[Completion]:
    rl = ctx.recipe.rl
    groups = asyncio.run(
        sample_all(
            ctx.renderer,
            ctx.engine(load_policy(path, placement=ctx.placement), version=_version(ctx, player)),
            examples,
            SamplingParams(max_tokens=rl.max_tokens, temperature=rl.temperature),
            group_size=1,
            seed=request_seed(ctx.recipe.seed, "arena", 0),
            progress=ctx.bar(f"arena: {player} answers"),
        )
    )
    return completions(groups)


def _judge(
    ctx: Context, examples: list[Example], answers: dict[str, list[Completion]], checkpoints: dict[str, str]
) -> list[Judgement]:
    """Every rater of the held-out pool sees every pair twice, once in each order."""
    cfg = ctx.recipe.arena
    rl = ctx.recipe.rl
    pool = rater_pool(ctx, cfg.num_raters, "arena")
    seed = request_seed(ctx.recipe.seed, "arena", 0)
    samples = {
        (player, example.id): Sample(
            prompt_id=example.id,
            round_id=ctx.round_id,
            stage=player,
            checkpoint=checkpoints[player],
            policy_version=completion.policy_version,
            params=SamplingParams(max_tokens=rl.max_tokens, temperature=rl.temperature),
            seed=request_seed(seed, example.id, 0),
            text=completion.text,
            token_ids=completion.token_ids,
            finish_reason=completion.finish_reason,
        )
        for player, given in answers.items()
        for example, completion in zip(examples, given, strict=True)
    }
    ctx.store.add_samples(list(samples.values()))
    matches = [(e, a, b) for e in examples for a, b in combinations(answers, 2)]
    questions = ctx.store.ask(
        [(samples[a, e.id].id, samples[b, e.id].id) for e, a, b in matches], purpose="arena", round_id=ctx.round_id
    )
    judgements: list[Judgement] = []
    submissions: list[Submission] = []
    for (example, a, b), question in zip(matches, questions, strict=True):
        pair = samples[a, example.id], samples[b, example.id]
        values = tuple(worth(example, s.text, s.finish_reason, wanted(ctx.recipe.labels)) for s in pair)
        lengths = tuple(len(s.token_ids) for s in pair)
        for rater in pool:
            for order in ((0, 1), (1, 0)):
                preference = rater.compare(question, (values[0], values[1]), (lengths[0], lengths[1]), order=order)
                submissions.append(Submission(preference, order))
                judgements.append(Judgement(example.id, a, b, outcome(preference)))
    ctx.store.answer(submissions)
    return judgements


def _measures(example: Example, completion: Completion, weights: Utility) -> dict[str, Any]:
    found: dict[str, Any] = measure(example, completion.text, completion.finish_reason)
    unseen = found["unseen_constraints_met"] is not None
    # Rewarded measures are read on the prompts that were judged, the unseen kinds on their own.
    return found | {"utility": None if unseen else utility(found, weights)}
