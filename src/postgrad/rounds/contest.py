"""Policies of one run on the same held-out prompts: the held-out pool compares them, and what can be measured is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

from postgrad.config.round import ArenaConfig, RatersConfig
from postgrad.data.batch import make_batch
from postgrad.data.tasks import Task
from postgrad.evals.arena import Answer, Judgement, arena_summary, average, outcome
from postgrad.feedback.raters import SimulatedRater
from postgrad.feedback.records import content_id
from postgrad.feedback.utility import UNREWARDED, Utility, utility
from postgrad.protocols import Policy
from postgrad.rollout import request_seed
from postgrad.rounds.context import draw_pool, last_user_text, measure, wanted, write_json, write_lines
from postgrad.rounds.manifest import Stage
from postgrad.run import RunDirectory
from postgrad.types import Completion, Example, Group

NUM_SAMPLES = 8
FOUND = ("utility", "right", "kl", "kl_sft", "teacher_kl")
"""Measures that a summary names; arena.json holds all of them."""

Measures = Mapping[str, float | None]


def heldout(tasks: Sequence[Task], num: int) -> list[Example]:
    """At most `num` questions, the tasks in turn."""
    longest = max(len(task.heldout) for task in tasks)
    mixed = [task.heldout[i] for i in range(longest) for task in tasks if i < len(task.heldout)]
    return mixed[:num]


def divergences(policy: Policy, groups: Sequence[Group]) -> list[float]:
    """KL from `policy` of whoever sampled each answer, nats an answer (k1)."""
    batch = make_batch(groups)
    assert batch.sampler_logprobs is not None
    difference = (batch.sampler_logprobs - policy.evaluate(batch).logprobs) * batch.loss_mask
    found: list[float] = difference.sum(1).tolist()
    return found


def rightness(groups: Sequence[Group]) -> list[dict[str, float | None]]:
    """1 where the first grader gives an answer at least 1; nothing where nobody grades."""
    first = [next((score.value for score in g.trajectories[0].scores), None) for g in groups]
    graded = any(g.trajectories[0].scores for g in groups)
    return [{"right": float(value is not None and value >= 1)} if graded else {} for value in first]


def judge(
    stage: Stage,
    answers: Mapping[str, Sequence[Group]],
    measured: Mapping[str, Sequence[Measures]],
    cfg: ArenaConfig,
    raters: RatersConfig,
    *,
    seed: int,
) -> dict[str, Any]:
    """Write arena.json and the .jsonl of judgements, answers and samples; what is worth saying, with intervals.

    Args:
        stage: of the arena.
        answers: player -> a group of one answer to each prompt, the same prompts for all; the oldest player first.
        measured: player -> what else is known of each answer.
        cfg: size of the pool and of the bootstrap.
        raters: who is in the pool.
        seed: of the recipe, from which the pool of the rounds comes too.
    """
    players = tuple(answers)
    examples = [group.example for group in answers[players[0]]]
    given = {player: [g.trajectories[0].turns[-1].completion for g in groups] for player, groups in answers.items()}
    weights = wanted(raters)
    rows = {
        player: [_measures(e, c, weights) | dict(m) for e, c, m in zip(examples, said, measured[player], strict=True)]
        for player, said in given.items()
    }
    judgements = average(_compare(examples, given, rows, draw_pool(cfg.num_raters, "arena", raters, seed=seed)))
    arena = arena_summary(
        judgements,
        [
            Answer(example.id, player, len(c.token_ids), c.finish_reason == "length", row)
            for player in players
            for example, c, row in zip(examples, given[player], rows[player], strict=True)
        ],
        players=players,
        unrewarded=UNREWARDED,
        resamples=cfg.resamples,
        seed=request_seed(seed, "bootstrap", 0),
    )
    write_json(stage.directory / "arena.json", arena)
    write_lines(stage.directory / "judgements.jsonl", map(asdict, judgements))
    write_lines(
        stage.directory / "answers.jsonl",
        (
            {
                "prompt_id": example.id,
                "prompt": last_user_text(example.prompt),
                "answers": {
                    player: {
                        "text": given[player][i].text,
                        "tokens": len(given[player][i].token_ids),
                        **rows[player][i],
                    }
                    for player in players
                },
            }
            for i, example in enumerate(examples)
        ),
    )
    last = given[players[-1]][:NUM_SAMPLES]
    write_lines(
        stage.directory / "samples.jsonl",
        (
            {
                "prompt": last_user_text(example.prompt),
                "text": c.text,
                "tokens": len(c.token_ids),
                "finish_reason": c.finish_reason,
            }
            for example, c in zip(examples, last, strict=False)
        ),
    )
    return _found(arena, players)


def write_curve(stage: Stage, players: Sequence[str], found: Mapping[str, Any]) -> None:
    """The findings of each player as the metrics of a step, the initial policy's as step 0, for the report."""
    run = RunDirectory(stage.directory)
    run.truncate_after(-1)
    keys = {"utility": "heldout/utility", "win_rate": "heldout/win_rate", "right": "heldout/accuracy"}
    for step, player in enumerate(players):
        values = {metric: found.get(f"{player}_{name}") for name, metric in keys.items()}
        values["policy/kl_ref"] = found.get(f"{player}_kl")
        run.write_metrics(step, {key: value for key, value in values.items() if value is not None})


def _measures(example: Example, completion: Completion, weights: Utility) -> dict[str, float | None]:
    found = measure(example, completion.text, completion.finish_reason)
    return {**found, "utility": utility(found, weights)}


def _compare(
    examples: Sequence[Example],
    given: Mapping[str, Sequence[Completion]],
    rows: Mapping[str, Sequence[Measures]],
    pool: Sequence[SimulatedRater],
) -> list[Judgement]:
    """Every rater of the held-out pool sees every pair twice, once in each order."""
    judgements = []
    for i, example in enumerate(examples):
        for a, b in combinations(given, 2):
            values = float(rows[a][i]["utility"] or 0.0), float(rows[b][i]["utility"] or 0.0)
            lengths = len(given[a][i].token_ids), len(given[b][i].token_ids)
            question = content_id("comparison", example.id, given[a][i].text, given[b][i].text)
            for rater in pool:
                for order in ((0, 1), (1, 0)):
                    preference = rater.compare(question, values, lengths, order=order)
                    judgements.append(Judgement(example.id, a, b, outcome(preference)))
    return judgements


def _found(arena: Mapping[str, Any], players: Sequence[str]) -> dict[str, Any]:
    won = {pair["a"]: pair for pair in arena["pairs"] if pair["b"] == players[0]}
    found: dict[str, Any] = {}
    for player in players:
        shown = {name: arena["measures"][player].get(name) for name in FOUND}
        for name, row in shown.items():
            if row is not None and row["mean"] is not None:
                _put(found, f"{player}_{name}", row["mean"], row)
        if player in won:
            _put(found, f"{player}_win_rate", won[player]["win_rate"], won[player])
        found[f"{player}_tokens"] = arena["players"][player]["mean_tokens"]
        found[f"{player}_truncated"] = arena["players"][player]["truncated_frac"]
    return found


def _put(found: dict[str, Any], key: str, value: float, row: Mapping[str, Any]) -> None:
    found |= {key: value, f"{key}_low": row["low"], f"{key}_high": row["high"]}
