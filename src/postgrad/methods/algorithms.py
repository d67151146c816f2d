"""From a recipe to the algorithm it names. What the recipe leaves out is the algorithm's own default."""

from __future__ import annotations

from dataclasses import replace

from postgrad.config.rl import RlConfig
from postgrad.methods.grpo import CISPO, DAPO, DR_GRPO, GRPO, GSPO, MAXRL, RLOO
from postgrad.methods.ppo import PPO
from postgrad.methods.reinforce import Reinforce

GROUP_RELATIVE = {
    "grpo": GRPO(),
    "dr_grpo": DR_GRPO,
    "rloo": RLOO,
    "dapo": DAPO,
    "gspo": GSPO,
    "cispo": CISPO,
    "maxrl": MAXRL,
}
SHARED = {"clip_eps", "clip_eps_high", "kl_coef", "missing_end_penalty"}


def make_algorithm(cfg: RlConfig) -> PPO | Reinforce | GRPO:
    shared = cfg.model_dump(include=SHARED, exclude_none=True)
    if cfg.algorithm == "ppo":
        return PPO(**shared, **cfg.model_dump(include=RlConfig.PPO_ONLY, exclude_none=True))
    if cfg.algorithm == "reinforce":
        return Reinforce(**shared)
    return replace(GROUP_RELATIVE[cfg.algorithm], max_tokens=cfg.max_tokens, **shared)
