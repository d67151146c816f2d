"""Pairs as a reward model reads them: answers by prompt, as token ids, with every opinion on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

from postgrad.config.reward import PairRewardConfig
from postgrad.config.sections import RewardConfig
from postgrad.feedback.agreement import Grade
from postgrad.feedback.competence import shared_weights
from postgrad.feedback.pairs import Answered, Pair
from postgrad.feedback.records import content_id
from postgrad.methods.reward import Ranked, Verdict
from postgrad.text.template import Renderer


def rank_pairs(
    pairs: Sequence[Pair],
    renderer: Renderer,
    cfg: RewardConfig,
    *,
    max_tokens: int,
    rater_weights: Mapping[str, float],
) -> tuple[list[Ranked], list[Pair]]:
    """Groups by prompt, in the order of their first pair, and the pairs that are too long.

    Args:
        pairs: checked.
        renderer: of the model that is to read them.
        cfg: says what a strength becomes.
        max_tokens: of a prompt with one answer.
        rater_weights: times each label's own; 1 for raters it does not name.

    Raises:
        DataError: a prompt or answer that the chat template refuses.
    """
    by_prompt: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_prompt.setdefault(pair.prompt_id, []).append(pair)
    ranked, too_long = [], []
    for prompt_id, about in by_prompt.items():
        name = f"prompt {prompt_id!r}"
        prompt = renderer.render_prompt(about[0].prompt, name=name)
        sides = dict.fromkeys(chain.from_iterable((p.better, p.worse) for p in about))
        ids = {side: (*prompt, *answer_ids(side, renderer, f"an answer to {name}")) for side in sides}
        fits = [p for p in about if len(ids[p.better]) <= max_tokens and len(ids[p.worse]) <= max_tokens]
        too_long += [p for p in about if p not in fits]
        if fits:
            answers = list(dict.fromkeys(ids[side] for p in fits for side in (p.better, p.worse)))
            verdicts = [
                _verdict(p, answers.index(ids[p.better]), answers.index(ids[p.worse]), cfg, rater_weights) for p in fits
            ]
            ranked.append(Ranked(len(prompt), tuple(answers), tuple(verdicts)))
    return ranked, too_long


def rater_weights_of(pairs: Sequence[Pair]) -> dict[str, float]:
    """What each rater's labels count, by how far they agree with others of their kind on the same answers.

    1 on average among raters of a kind, and 1 for who shared no question.
    """
    found = {pair.rater: 1.0 for pair in pairs if pair.rater}
    for kind in sorted({pair.rater_kind for pair in pairs}):
        found |= shared_weights(pair_grades([pair for pair in pairs if pair.rater_kind == kind]))
    return found


def pair_grades(pairs: Sequence[Pair]) -> list[Grade]:
    """Opinions of raters who are known, as statistics of agreement read them."""
    grades = []
    for pair in pairs:
        if pair.rater:
            first, second = sorted((pair.better.text, pair.worse.text))
            sign = 0 if pair.tie else 1 if pair.better.text == first else -1
            grades.append(Grade(content_id(pair.prompt_id, first, second), pair.rater, sign))
    return grades


def _verdict(pair: Pair, better: int, worse: int, cfg: RewardConfig, rater_weights: Mapping[str, float]) -> Verdict:
    soft = cfg.soft_labels if isinstance(cfg, PairRewardConfig) else None
    return Verdict(
        better,
        worse,
        tie=pair.tie,
        weight=pair.weight * rater_weights.get(pair.rater, 1.0),
        margin=cfg.margin_per_grade * (pair.strength - 1),
        label=soft[pair.strength - 1] if soft else 1.0,
        strength=pair.strength,
        rater=pair.rater,
        domain=pair.domain or pair.source,
    )


def answer_ids(side: Answered, renderer: Renderer, name: str) -> tuple[int, ...]:
    """As sampled, where these tokens are this model's: a policy with another tokenizer may have written it."""
    if side.token_ids and renderer.parse(side.token_ids).content == side.text:
        return side.token_ids
    return renderer.render_answer(side.text, name=name)
