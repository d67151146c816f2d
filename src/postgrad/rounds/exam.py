"""Examinations during a round's RL: does what the raters want still rise with what the reward model says?

The gold score is the simulated raters' declared utility. Once it has surely fallen from its best examination, more
optimisation only exploits the reward model (Gao et al. 2023, arXiv 2210.10760): the run ends, and goes back.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from postgrad.config.round import ExamConfig
from postgrad.data.batch import make_batch
from postgrad.engine.local import LocalEngine
from postgrad.errors import GraderError
from postgrad.evals.overoptimisation import CURVE, best_of_n_curve, fallen, peak, point
from postgrad.feedback.utility import utility
from postgrad.models.load import save_policy
from postgrad.models.policy import PolicyModel
from postgrad.protocols import Grader, Policy
from postgrad.rollout import grade_groups, request_seed
from postgrad.rounds.context import Context, completions, measure, sample_all, write_json, write_lines
from postgrad.types import Example, Group, SamplingParams


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

    async def before_step(self, step: int) -> str | None:
        return await self.sit(step) if step % self.cfg.every == 0 else None

    async def sit(self, step: int) -> str | None:
        """Examine the policy after so many steps; why to stop, where there is a reason."""
        self.directory.mkdir(exist_ok=True)
        if step == 0 and self.cfg.best_of and not self._best_of.exists():
            write_lines(self._best_of, await self._read(self.cfg.best_of))
        if not self._sheet(step).exists():
            write_lines(self._sheet(step), await self._read(1))
        best = self._best_step()
        if best == step and not self._kept(step).exists():
            save_policy(self.model, self._kept(step), tokenizer_from=self.ctx.initial)
            for earlier in set(self._steps()) - {step}:
                shutil.rmtree(self._kept(earlier), ignore_errors=True)
        found = fallen(_golds(self._rows(best)), _golds(self._rows(step)))
        if found is None or not self.cfg.stop:
            return None
        return (
            f"step {step}: the gold score has fallen by {-found['change']:.2f} [{-found['high']:.2f}, "
            f"{-found['low']:.2f}] since step {best}, to which the policy goes back"
        )

    def go_back(self, policy: Path) -> int:
        """Put the best step's weights in the place of the last one's; how many updates lie behind them."""
        best = self._best_step()
        shutil.rmtree(policy)
        shutil.copytree(self._kept(best), policy)
        version: int = self._rows(best)[0]["policy_version"]
        return version

    def tidy(self) -> None:
        """Forget the best step's weights: last of all, when a run cut off before would begin anew."""
        shutil.rmtree(self._kept(self._best_step()))

    def finish(self) -> dict[str, Any]:
        """Write the curves beside the stage's files; what the stage's summary says of them."""
        points = []
        for step in self._steps():
            rows = self._rows(step)
            proxies = [row["proxy"][0] for row in rows]
            kl = float(np.mean([row["kl"][0] for row in rows]))
            points.append({"step": step, **point(kl, proxies, _golds(rows))})
        best_of = []
        if self.cfg.best_of:
            rows = _read_lines(self._best_of)
            best_of = best_of_n_curve(np.array([r["proxy"] for r in rows]), np.array([r["gold"] for r in rows]))
        write_json(self.directory.parent / CURVE, {"rl": points, "best_of": best_of})
        best = points[peak(points)]
        return {
            "exam_first_gold": points[0]["gold"],
            "exam_best_gold": best["gold"],
            "exam_best_step": best["step"],
            "exam_last_gold": points[-1]["gold"],
        }

    async def _read(self, num_answers: int) -> list[dict[str, Any]]:
        """Answers, what both scores say of them, and how far in nats they lie from the reference."""
        rl = self.ctx.recipe.rl
        groups = await sample_all(
            self.ctx.renderer,
            self.engine,
            self.examples,
            SamplingParams(max_tokens=rl.max_tokens, temperature=rl.temperature),
            group_size=num_answers,
            seed=request_seed(self.ctx.recipe.seed, f"exam {num_answers}", 0),
            progress=lambda done, total: None,
        )
        graded = await grade_groups(groups, [self.proxy])
        unscored = [t.id for group in graded for t in group.trajectories if t.reward is None]
        if unscored:
            raise GraderError(
                f"the reward model gave {len(unscored)} held-out answers no score, such as {unscored[0]!r}"
            )
        return [self._row(group) for group in graded]

    def _row(self, group: Group) -> dict[str, Any]:
        batch = make_batch([group])
        ratio = self.policy.evaluate(batch).logprobs - self.reference.evaluate(batch).logprobs
        given = completions([group])
        return {
            "prompt_id": group.example.id,
            "policy_version": given[0].policy_version,
            "answers": [c.text for c in given],
            "tokens": [len(c.token_ids) for c in given],
            "proxy": [t.reward for t in group.trajectories],
            "gold": [utility(measure(group.example, c.text, c.finish_reason)) for c in given],
            "kl": (ratio * batch.loss_mask).sum(1).tolist(),
        }

    def _best_step(self) -> int:
        steps = self._steps()
        return steps[peak([{"gold": float(np.mean(_golds(self._rows(step))))} for step in steps])]

    def _kept(self, step: int) -> Path:
        return self.directory / f"best-{step:04d}"

    def _steps(self) -> list[int]:
        return sorted(int(path.stem.removeprefix("step-")) for path in self.directory.glob("step-*.jsonl"))

    def _rows(self, step: int) -> list[dict[str, Any]]:
        return _read_lines(self._sheet(step))

    def _sheet(self, step: int) -> Path:
        return self.directory / f"step-{step:04d}.jsonl"

    @property
    def _best_of(self) -> Path:
        return self.directory / "best-of.jsonl"


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _golds(rows: Sequence[dict[str, Any]]) -> list[float]:
    return [row["gold"][0] for row in rows]
