"""Reading a reward model on held-out pairs, probes and the policy's own answers: what its certificate is made of."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from postgrad.data.batch import collate
from postgrad.engine.local import LocalEngine
from postgrad.errors import DataError
from postgrad.evals.length_control import length_slope
from postgrad.evals.reward_health import HeldOut, Probe, certificate
from postgrad.evals.reward_probes import PROBES
from postgrad.feedback.agreement import Grade
from postgrad.graders.reward_model import LengthTrend
from postgrad.methods.reward import Ranked, score, score_ensemble, without_length
from postgrad.models.policy import PolicyModel
from postgrad.rollout import request_seed
from postgrad.rounds.context import OpenBar
from postgrad.text.template import Renderer
from postgrad.trainer.local import FrozenPolicy
from postgrad.types import GenerationRequest, SamplingParams


@dataclass(frozen=True)
class Exam:
    """What a reward model is examined with."""

    renderer: Renderer
    validation: Sequence[Ranked]
    grades: Sequence[Grade]
    """Of raters on the held-out questions."""
    num_probes: int
    bar: OpenBar
    reference: FrozenPolicy | None = None
    """Whose log-probabilities are a baseline; None leaves it out."""
    sampled: Sequence[Ranked] = ()
    """The policy's own answers, for an ensemble's disagreement."""
    residualise: bool = False
    """Whether what length alone predicts is taken from the reward, which is then what is examined."""


def examine(model: PolicyModel, exam: Exam) -> dict[str, Any]:
    """The certificate, but for the model's hash.

    Raises:
        DataError: length is to be taken from the reward, and nothing shows what it predicts.
    """
    as_read = score_ensemble(model, exam.validation, exam.bar("checking it on held-out pairs"))
    length = _length(exam, as_read)
    trend = LengthTrend(length["slope"]["value"], length["centre"]) if length and exam.residualise else None
    if exam.residualise and trend is None:
        raise DataError(
            "fewer than two held-out prompts have answers that came to an end and differ in length, so what length "
            "predicts is unknown; collect more labels, or remove 'reward.residualise_length'"
        )
    rewards = without_length(exam.validation, as_read, trend)
    likely = _log_probabilities(exam)
    pairs = [
        _held_out(str(i), group, v, rewards_AK, likely[i] if likely else {})
        for i, (group, rewards_AK) in enumerate(zip(exam.validation, rewards, strict=True))
        for v in group.verdicts
        if not v.tie
    ]
    std = float(torch.cat(rewards).mean(1).std())
    probes = _probes(model, exam, trend, [rewards_AK.mean(1).tolist() for rewards_AK in rewards])
    spread: list[float] = []
    if rewards[0].shape[1] > 1 and exam.sampled:
        sampled = score_ensemble(model, exam.sampled, exam.bar("reading its heads on the policy's answers"))
        spread = torch.cat(sampled).std(1).tolist()
    return certificate(pairs, probes, exam.grades, reward_std=std, sample_spread=spread, length=length)


def _length(exam: Exam, rewards: Sequence[torch.Tensor]) -> dict[str, Any] | None:
    """Read on answers that came to an end: one that was cut off is bad for that, and long because of it."""
    ended = [[i for i, a in enumerate(g.answers) if a[-1] in exam.renderer.stop_ids] for g in exam.validation]
    found = length_slope(
        [rewards_AK.mean(1)[kept].tolist() for rewards_AK, kept in zip(rewards, ended, strict=True)],
        [[len(g.answers[i]) - g.prompt_length for i in kept] for g, kept in zip(exam.validation, ended, strict=True)],
    )
    return None if found is None else {**found, "residualised": exam.residualise}


def sample_answers(
    policy: PolicyModel, renderer: Renderer, prompts: Sequence[tuple[int, ...]], *, max_tokens: int, seed: int
) -> list[Ranked]:
    """One answer of a policy to each prompt, without verdicts."""
    engine = LocalEngine(policy, stop_ids=renderer.stop_ids, decode=renderer.decode)
    params = SamplingParams(max_tokens)
    requests = [GenerationRequest(prompt, params, request_seed(seed, str(i), 0)) for i, prompt in enumerate(prompts)]
    answers = asyncio.run(engine.generate(requests))
    return [
        Ranked(len(prompt), ((*prompt, *answer.token_ids),), ())
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def _held_out(
    prompt: str, group: Ranked, verdict: Any, rewards_AK: torch.Tensor, likely: dict[str, list[float]]
) -> HeldOut:
    gaps_K = rewards_AK[verdict.better] - rewards_AK[verdict.worse]
    return HeldOut(
        prompt,
        margin=float(gaps_K.mean()),
        longer_by=len(group.answers[verdict.better]) - len(group.answers[verdict.worse]),
        strength=verdict.strength,
        domain=verdict.domain,
        rater=verdict.rater,
        spread=float(gaps_K.std()) if len(gaps_K) > 1 else 0.0,
        baselines={name: values[verdict.better] - values[verdict.worse] for name, values in likely.items()},
    )


def _log_probabilities(exam: Exam) -> list[dict[str, list[float]]]:
    """Of every answer under the reference, by group: in all, and a token."""
    if exam.reference is None:
        return []
    progress = exam.bar("reading log-probabilities")
    found = []
    for group in exam.validation:
        masks = [[t >= group.prompt_length for t in range(len(answer))] for answer in group.answers]
        batch = collate(group.answers, masks)
        sums_A = exam.reference.evaluate(batch).logprobs.sum(1)
        means_A = sums_A / batch.loss_mask.sum(1).clamp_min(1)
        found.append({"log-probability": sums_A.tolist(), "log-probability a token": means_A.tolist()})
        progress(len(found), len(exam.validation))
    return found


def _probes(
    model: PolicyModel, exam: Exam, trend: LengthTrend | None, rewards: Sequence[Sequence[float]]
) -> list[Probe]:
    """Each of some preferred answers, changed in one thing, beside itself."""
    found: list[Probe] = []
    groups: list[Ranked] = []
    asked: list[str] = []
    for i, (group, given) in enumerate(zip(exam.validation, rewards, strict=True)):
        better = next((v.better for v in group.verdicts if not v.tie), None)
        if better is None or len(groups) == exam.num_probes:
            continue
        prompt, answer = group.answers[better][: group.prompt_length], group.answers[better][group.prompt_length :]
        text = exam.renderer.decode(answer).strip()
        if not text:
            continue
        texts = [text, *(change(text) for change in PROBES.values())]
        rows = tuple((*prompt, *exam.renderer.render_answer(changed)) for changed in texts)
        if max(map(len, rows)) > model.context:
            continue
        groups.append(Ranked(group.prompt_length, rows, ()))
        asked.append(str(i))
        (turned,) = score(model, [Ranked(group.prompt_length, group.answers[::-1], ())], _silent, trend=trend)
        found.append(Probe("position", str(i), given[better], turned[::-1][better]))
    scored = score(model, groups, exam.bar("changing one thing about its favourites"), trend=trend)
    for prompt_name, (before, *after) in zip(asked, scored, strict=True):
        found += [Probe(kind, prompt_name, before, value) for kind, value in zip(PROBES, after, strict=True)]
    return found


def _silent(done: int, total: int) -> None:
    pass
