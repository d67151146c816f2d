"""Examinations during a round's RL: does what the reward model stands for still rise with what it says?

That is the gold score, from one of `rounds.gold`. Once it has surely fallen from its best examination, more
optimisation only exploits the reward model (Gao et al. 2023, arXiv 2210.10760): the run ends, and goes back.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from postgrad.config.round import ExamConfig
from postgrad.data.batch import make_batch
from postgrad.engine.local import LocalEngine
from postgrad.evals.overoptimisation import CURVE, best_of_n_curve, fallen, is_known, peak
from postgrad.models.load import save_policy
from postgrad.models.policy import PolicyModel
from postgrad.protocols import Grader, Policy
from postgrad.rounds.context import Context, completions, sample_all, write_json, write_lines
from postgrad.rounds.exam_labels import exam_point
from postgrad.rounds.gold import Gold, exam_seed, rewards_of
from postgrad.run import read_json_lines
from postgrad.types import Example, Group, SamplingParams


class Fall(NamedTuple):
    """What was found after a step, and stands whatever is labelled later."""

    best: int
    """The step to go back to."""
    reason: str


@dataclass(frozen=True)
class PolicyExam:
    """One sampled answer to every held-out prompt; a sheet that exists is of this very policy, and is kept."""

    ctx: Context
    cfg: ExamConfig
    directory: Path
    examples: Sequence[Example]
    model: PolicyModel
    policy: Policy
    reference: Policy
    engine: LocalEngine
    proxy: Grader
    gold: Gold
    falls: dict[int, Fall] = field(default_factory=dict)
    """By the step after which they were found."""

    async def before_step(self, step: int) -> str | None:
        return await self.sit(step) if step % self.cfg.every == 0 else None

    async def sit(self, step: int) -> str | None:
        """Examine the policy after so many steps; why to stop, where there is a reason.

        Examinations of later steps, from before the run was cut off, do not count yet.
        """
        self.directory.mkdir(exist_ok=True)
        if step == 0 and self.cfg.best_of and not self._best_of.exists():
            write_lines(self._best_of, await self._read(step, self.cfg.best_of))
        if not self.gold.settled:
            self._keep(step)
        if not self._sheet(step).exists():
            write_lines(self._sheet(step), await self._read(step, 1))
        if step in self.falls:
            return self.falls[step].reason
        steps = [s for s in self._steps() if s <= step]
        golds = {s: self.gold.scores(self._rows(s)) for s in steps}
        known = [s for s in steps if is_known(golds[s])]
        best = known[peak([{"gold": float(np.nanmean(golds[s]))} for s in known])]
        if self.gold.settled:
            self._keep_only(best, step)
        found = fallen(golds[best], golds[known[-1]])
        if found is None or not self.cfg.stop:
            return None
        reason = (
            f"step {known[-1]}: the gold score has fallen by {-found['change']:.2f} [{-found['high']:.2f}, "
            f"{-found['low']:.2f}] since step {best}, to which the policy goes back"
        )
        self.falls[step] = Fall(best, reason)
        return reason

    def go_back(self, step: int, policy: Path) -> int:
        """Put the weights of before the fall that was found after this step in the place of the last ones.

        Returns:
            How many updates lie behind them.
        """
        best = self.falls[step].best
        shutil.rmtree(policy)
        shutil.copytree(self._kept(best), policy)
        version: int = self._rows(best)[0]["policy_version"]
        return version

    def tidy(self) -> None:
        """Forget the examined weights: last of all, when a run cut off before would begin anew."""
        for path in self.directory.glob("weights-*"):
            shutil.rmtree(path)

    def finish(self) -> dict[str, Any]:
        """Write the curves beside the stage's files; what the stage's summary says of them."""
        golds = {step: self.gold.scores(self._rows(step)) for step in self._steps()}
        points = [exam_point(step, self._rows(step), gold) for step, gold in golds.items()]
        best_of = []
        if self.cfg.best_of:
            rows = read_json_lines(self._best_of)
            best_of = best_of_n_curve(np.array([r["proxy"] for r in rows]), np.array([r["gold"] for r in rows]))
        write_json(self.directory.parent / CURVE, {"gold": self.cfg.gold, "rl": points, "best_of": best_of})
        best = points[peak(points)]
        return {
            "exam_gold": self.cfg.gold,
            "exam_first_gold": points[0]["gold"],
            "exam_best_gold": best["gold"],
            "exam_best_step": best["step"],
            "exam_last_gold": points[-1]["gold"],
            "exam_unlabelled": int(sum(np.isnan(gold).sum() for gold in golds.values())),
        }

    async def _read(self, step: int, num_answers: int) -> list[dict[str, Any]]:
        """Answers, what both scores say of them, and how far in nats they lie from the reference."""
        rl = self.ctx.recipe.rl
        groups = await sample_all(
            self.ctx.renderer,
            self.engine,
            self.examples,
            SamplingParams(max_tokens=rl.max_tokens, temperature=rl.temperature),
            group_size=num_answers,
            seed=exam_seed(self.ctx, num_answers),
            progress=lambda done, total: None,
        )
        proxies = await rewards_of(groups, self.proxy, who="the reward model")
        first = self._rows(0) if step else ()
        golds = await self.gold.read(groups, step=step, first=first, policy=self._kept(step))
        return [self._row(*row) for row in zip(groups, proxies, golds, strict=True)]

    def _row(self, group: Group, proxy: list[float], gold: dict[str, Any]) -> dict[str, Any]:
        batch = make_batch([group])
        ratio = self.policy.evaluate(batch).logprobs - self.reference.evaluate(batch).logprobs
        given = completions([group])
        return {
            "prompt_id": group.example.id,
            "policy_version": given[0].policy_version,
            "answers": [c.text for c in given],
            "tokens": [len(c.token_ids) for c in given],
            "proxy": proxy,
            **gold,
            "kl": (ratio * batch.loss_mask).sum(1).tolist(),
        }

    def _keep(self, step: int) -> None:
        """The weights as they are now; whole or not at all."""
        if self._kept(step).exists():
            return
        part = self.directory / f"weights-{step:04d}-part"
        shutil.rmtree(part, ignore_errors=True)
        save_policy(self.model, part, tokenizer_from=self.ctx.initial)
        part.rename(self._kept(step))

    def _keep_only(self, best: int, step: int) -> None:
        """Of the examinations up to this one, the best one's weights."""
        if best == step:
            self._keep(step)
            for earlier in range(step):
                shutil.rmtree(self._kept(earlier), ignore_errors=True)

    def _kept(self, step: int) -> Path:
        return self.directory / f"weights-{step:04d}"

    def _steps(self) -> list[int]:
        return sorted(int(path.stem.removeprefix("step-")) for path in self.directory.glob("step-*.jsonl"))

    def _rows(self, step: int) -> list[dict[str, Any]]:
        return read_json_lines(self._sheet(step))

    def _sheet(self, step: int) -> Path:
        return self.directory / f"step-{step:04d}.jsonl"

    @property
    def _best_of(self) -> Path:
        return self.directory / "best-of.jsonl"
