"""An RL run small enough for a test: eight prompts, a byte-level model, a reward that can be learned."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch

from postgrad.config.rl import RlConfig
from postgrad.data.mixture import Mixture
from postgrad.engine.local import LocalEngine
from postgrad.methods.ppo import PPO
from postgrad.methods.rl import train_rl
from postgrad.models.load import load_policy
from postgrad.models.policy import PolicyModel
from postgrad.protocols import Algorithm, Grader
from postgrad.run import RunDirectory
from postgrad.text.template import Renderer
from postgrad.text.tokenizer import load_tokenizer
from postgrad.trainer.local import FrozenPolicy, LocalTrainer
from postgrad.types import Conversation, Example, Group, Message, Score

CFG = RlConfig(
    steps=6,
    prompts_per_step=3,
    group_size=4,
    epochs=2,
    minibatches=2,
    learning_rate=3e-3,
    max_tokens=6,
    kl_coef=0.02,
    kl_stop=1e6,
)
EXAMPLES = [Example(str(i), Conversation((Message("user", "abcdefgh"[i] * (1 + i % 3)),))) for i in range(8)]


class ShareOfLowBytes:
    """The share of sampled tokens below 64."""

    name = "low_bytes"

    async def grade(self, group: Group) -> Sequence[Score]:
        sampled = [t.turns[-1].completion.token_ids for t in group.trajectories]
        return [Score(self.name, sum(token < 64 for token in ids) / len(ids)) for ids in sampled]


def quiet(done: int, total: int) -> None:
    pass


def reinforce(
    directory: Path,
    path: Path,
    algorithm: Algorithm,
    *,
    cfg: RlConfig = CFG,
    reference: PolicyModel | None = None,
    share_model: bool = True,
    graders: Sequence[Grader] | None = None,
    examples: Sequence[Example] = EXAMPLES,
    make_trainer: Any = LocalTrainer,
    make_engine: Any = LocalEngine,
    make_run: Any = RunDirectory,
) -> tuple[str | None, RunDirectory, LocalTrainer]:
    """One run; returns (why it stopped, its directory, its trainer)."""
    renderer = Renderer(load_tokenizer(directory))
    torch.manual_seed(3)
    model = load_policy(directory, heads=("value",) if isinstance(algorithm, PPO) else ())
    trainer = make_trainer(model, batch_tokens=60)
    sampler = model if share_model else load_policy(directory)
    run = make_run(path, root_seed=11)
    outcome = asyncio.run(
        train_rl(
            cfg,
            trainer=trainer,
            reference=FrozenPolicy(reference or load_policy(directory), batch_tokens=100),
            engine=make_engine(sampler, stop_ids=renderer.stop_ids, decode=renderer.decode),
            algorithm=algorithm,
            graders=[ShareOfLowBytes()] if graders is None else graders,
            dataset=Mixture([(examples, 1.0)], seed=1),
            renderer=renderer,
            context=model.context,
            run=run,
            progress=quiet,
        )
    )
    return outcome.stopped, run, trainer


def forkserver() -> ForkServerContext:
    """Processes that need not import torch; the first test to ask decides what they have, so all ask for the same."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["postgrad.rounds.round", "postgrad.rounds.summary", "postgrad.recipes"])
    return context


def without_times(run: RunDirectory) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in run.read_metrics()]
