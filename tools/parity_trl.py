"""Our losses beside TRL's own, on the same random logprobs in float64: largest difference in value and in gradient.

Usage, in an environment that has TRL: PYTHONPATH=src python tools/parity_trl.py. Prints Markdown; exits with 1 where
a difference exceeds 1e-6. TRL's methods are called on a stand-in for the trainer, which holds their settings.
KL terms are left out (ours is k2, TRL's ratio-weighted k3), and RLOO is compared on answers of one token (TRL clips the
ratio of whole answers). TRL computes ORPO's odds in float32, and beside them its own likelihood, which is left out.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
import trl
from torch import Tensor
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.rloo_trainer import RLOOTrainer

from postgrad.data.batch import Batch
from postgrad.methods.grpo import CISPO, DAPO, DR_GRPO, GRPO, GSPO, RLOO
from postgrad.ops.losses import bradley_terry_loss, dpo_loss, kto_loss, orpo_loss, simpo_loss
from postgrad.protocols import PolicyOutput

ANSWERS, TOKENS, SEEDS, BAR = 12, 9, 20, 1e-6
LOW, HIGH = 0.2, 0.28
Losses = tuple[Tensor, Tensor]


def same(x: Any, *_: Any, **__: Any) -> Any:
    return x


ACCELERATOR = SimpleNamespace(gather=same, gather_for_metrics=same, reduce=same, num_processes=1, device="cpu")
EVALUATION = SimpleNamespace(training=False)


def random_inputs(seed: int, tokens: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    old = -3 * torch.rand(ANSWERS, tokens, generator=g, dtype=torch.float64)
    lengths = torch.randint(1, tokens + 1, (ANSWERS, 1), generator=g)
    return {
        "old": old,
        "new": old + 0.4 * torch.randn(old.shape, generator=g, dtype=torch.float64),
        "mask": torch.arange(tokens) < lengths,
        "advantages": torch.randn(ANSWERS, generator=g, dtype=torch.float64),
    }


def ours(algorithm: GRPO, x: dict[str, Tensor], new: Tensor) -> Tensor:
    mask = x["mask"]
    batch = Batch(
        input_ids=torch.zeros(mask.shape, dtype=torch.int64),
        lengths=mask.sum(1),
        loss_mask=mask,
        old_logprobs=x["old"],
        ref_logprobs=x["old"],
        advantages=x["advantages"][:, None] * mask,
    )
    settings = replace(algorithm, clip_eps=LOW, clip_eps_high=HIGH, kl_coef=0.0, max_tokens=mask.shape[1])
    loss = settings.loss(batch, PolicyOutput(new, torch.zeros_like(new)))
    return loss.total / loss.count


def trls(trainer: Any, x: dict[str, Tensor], new: Tensor, **settings: Any) -> Tensor:
    ids, mask = torch.zeros(x["mask"].shape, dtype=torch.int64), x["mask"].long()
    stand_in = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (new, torch.zeros_like(new), None),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _entropy_bonus_enabled=False,
        accelerator=ACCELERATOR,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=True),
        aux_loss_enabled=False,
        beta=0.0,
        current_gradient_accumulation_steps=1,
        epsilon_low=LOW,
        epsilon_high=HIGH,
        importance_sampling_level="token",
        max_completion_length=TOKENS,
        model=EVALUATION,
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
    )
    stand_in.__dict__.update(settings)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1] + 1,
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": x["advantages"],
        "old_per_token_logps": x["old"],
        "old_logps": (x["old"] * mask).sum(1),
        "num_items_in_batch": mask.sum(),
    }
    loss: Tensor = trainer._compute_loss(stand_in, EVALUATION, inputs)
    return loss


def relative(
    algorithm: GRPO, trainer: Any = GRPOTrainer, tokens: int = TOKENS, **settings: Any
) -> Callable[[int], Losses]:
    def both(seed: int) -> Losses:
        x = random_inputs(seed, tokens)
        return differences(lambda new: ours(algorithm, x, new), lambda new: trls(trainer, x, new, **settings), x["new"])

    return both


def preference(kind: str) -> Callable[[int], Losses]:
    """Half of the rows are chosen answers; TRL's ipo divides logprobs by length, so ours is handed such means."""

    def both(seed: int) -> Losses:
        x = random_inputs(seed, TOKENS)
        mask = x["mask"]

        def our_loss(new: Tensor) -> Tensor:
            divisor = mask.sum(1) if kind == "ipo" else 1
            policy, reference = (((lp * mask).sum(1) / divisor).chunk(2) for lp in (new, x["old"]))
            total, count, _ = dpo_loss(*policy, *reference, beta=0.1, kind=kind)  # type: ignore[arg-type]
            return total / count

        def trl_loss(new: Tensor) -> Tensor:
            return trl_preference(kind, new * mask, x["old"] * mask, mask)

        return differences(our_loss, trl_loss, x["new"])

    return both


def trl_preference(kind: str, new: Tensor, ref: Tensor, mask: Tensor) -> Tensor:
    zeros = torch.zeros_like(new)
    no_mask = torch.zeros(len(mask), 1, dtype=torch.int64)
    stand_in = SimpleNamespace(
        _metrics=defaultdict(lambda: defaultdict(list)),
        accelerator=ACCELERATOR,
        aux_loss_enabled=False,
        beta=0.1,
        f_divergence_type="reverse_kl",
        ld_alpha=None,
        loss_types=[kind],
        loss_weights=[1.0],
        model=EVALUATION,
        precompute_ref_logps=True,
        use_weighting=False,
        _total_train_tokens=0,
        _tp_size=1,
    )
    output = SimpleNamespace(log_probs=new, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
    chosen, rejected = ref.sum(1).chunk(2)
    inputs = {
        "input_ids": torch.zeros(len(mask), mask.shape[1] + 1, dtype=torch.int64),
        "attention_mask": torch.cat([no_mask + 1, mask.long()], 1),
        "completion_mask": torch.cat([no_mask, mask.long()], 1),
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    loss: Tensor = DPOTrainer._compute_loss(stand_in, lambda **_: output, inputs, return_outputs=False)
    return loss


def kto(seed: int) -> Losses:
    """Half of the answers are good; the reference point comes from mismatched answers, which the batch supplies."""
    x = random_inputs(seed, TOKENS)
    mask, good = x["mask"], torch.arange(ANSWERS) % 2 == 0
    point = x["old"].sum(1) + 2 * torch.rand(
        ANSWERS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )

    def our_loss(new: Tensor) -> Tensor:
        ratio = ((new - x["old"]) * mask).sum(1)
        kl = float((point - x["old"].sum(1)).mean())
        total, count, _ = kto_loss(ratio, good, kl=kl, beta=0.1, good_weight=1.0, bad_weight=1.5)
        return total / count

    def trl_loss(new: Tensor) -> Tensor:
        stand_in = SimpleNamespace(
            _metrics=defaultdict(lambda: defaultdict(list)),
            _compute_kl_logps=lambda *_: point,
            accelerator=ACCELERATOR,
            aux_loss_enabled=False,
            beta=0.1,
            calculate_KL=True,
            desirable_weight=1.0,
            loss_type="kto",
            model=EVALUATION,
            precompute_ref_logps=True,
            undesirable_weight=1.5,
            _total_train_tokens=0,
        )
        zeros = torch.zeros_like(new)
        output = SimpleNamespace(log_probs=new * mask, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
        no_mask = torch.zeros(len(mask), 1, dtype=torch.int64)
        inputs = {
            "input_ids": torch.zeros(len(mask), mask.shape[1] + 1, dtype=torch.int64),
            "attention_mask": torch.cat([no_mask + 1, mask.long()], 1),
            "completion_mask": torch.cat([no_mask, mask.long()], 1),
            "label": good,
            "ref_logps": (x["old"] * mask).sum(1),
            "ref_KL_logps": x["old"].sum(1),
        }
        loss: Tensor = KTOTrainer._compute_loss(stand_in, lambda **_: output, inputs, return_outputs=False)
        return loss

    return differences(our_loss, trl_loss, x["new"])


def reference_free(name: str) -> Callable[[int], Losses]:
    """On mean logprobs of a token, below zero."""

    def both(seed: int) -> Losses:
        x = random_inputs(seed, TOKENS)
        means = x["old"].mean(1)
        stand_in = SimpleNamespace(
            accelerator=ACCELERATOR, alpha=0.0, beta=2.0, label_smoothing=0.0, loss_type="simpo", simpo_gamma=1.0
        )

        def our_loss(new: Tensor) -> Tensor:
            chosen, rejected = new.chunk(2)
            if name == "simpo":
                total, count, _ = simpo_loss(chosen, rejected, beta=2.0, gamma=1.0)
            else:
                total, count, _ = orpo_loss(chosen, rejected, beta=2.0)
                total = total + chosen.sum()
            return total / count

        def trl_loss(new: Tensor) -> Tensor:
            if name == "simpo":
                loss: Tensor = CPOTrainer.cpo_loss(stand_in, *new.chunk(2))[0].mean()
            else:
                loss = -ORPOTrainer.odds_ratio_loss(stand_in, *new.chunk(2))[0].mean()
            return loss

        return differences(our_loss, trl_loss, means)

    return both


def reward_model(seed: int) -> Losses:
    g = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(2 * ANSWERS, 1, generator=g, dtype=torch.float64)
    margin = torch.rand(ANSWERS, generator=g, dtype=torch.float64)
    stand_in = SimpleNamespace(
        _metrics=defaultdict(lambda: defaultdict(list)),
        accelerator=ACCELERATOR,
        args=SimpleNamespace(center_rewards_coefficient=None),
        model=EVALUATION,
        _total_train_tokens=0,
    )

    def our_loss(x: Tensor) -> Tensor:
        total, count, _ = bradley_terry_loss(*x[:, 0].chunk(2), margin=margin)
        return total / count

    def trl_loss(x: Tensor) -> Tensor:
        loss: Tensor = RewardTrainer.compute_loss(stand_in, lambda **_: SimpleNamespace(logits=x), {"margin": margin})
        return loss

    return differences(our_loss, trl_loss, scores)


def differences(our_loss: Callable[[Tensor], Tensor], trl_loss: Callable[[Tensor], Tensor], at: Tensor) -> Losses:
    """(|difference of losses|, largest |difference of gradients|)."""
    found = []
    for loss in (our_loss, trl_loss):
        x = at.clone().requires_grad_()
        value = loss(x)
        (gradient,) = torch.autograd.grad(value, x)
        assert gradient.abs().max() > 1e-3, "a loss without gradient would agree with anything"
        found.append((value.detach(), gradient))
    (a, grad_a), (b, grad_b) = found
    return (a - b).abs(), (grad_a - grad_b).abs().max()


CASES: dict[str, Callable[[int], Losses]] = {
    "GRPO (loss_type grpo)": relative(GRPO(), loss_type="grpo"),
    "Dr. GRPO (dr_grpo)": relative(DR_GRPO, loss_type="dr_grpo"),
    "DAPO (dapo)": relative(DAPO, loss_type="dapo"),
    "GSPO (grpo, sequence level)": relative(GSPO, loss_type="grpo", importance_sampling_level="sequence"),
    "CISPO (cispo)": relative(CISPO, loss_type="cispo", epsilon_high=1 + HIGH),
    "RLOO, one token": relative(RLOO, RLOOTrainer, tokens=1),
    "DPO (sigmoid)": preference("sigmoid"),
    "IPO (ipo)": preference("ipo"),
    "KTO (kto)": kto,
    "SimPO (simpo)": reference_free("simpo"),
    "ORPO, its odds ratio": reference_free("orpo"),
    "reward model, margin": reward_model,
}


def main() -> int:
    print(f"TRL {trl.__version__}, {SEEDS} seeds, {ANSWERS} answers of 1 to {TOKENS} tokens\n")
    print("| loss | value | gradient |\n|---|---|---|")
    worst = 0.0
    for name, both in CASES.items():
        value, gradient = (max(float(d) for d in column) for column in zip(*map(both, range(SEEDS)), strict=True))
        print(f"| {name} | {value:.1e} | {gradient:.1e} |")
        worst = max(worst, value, gradient)
    return int(worst > BAR)


if __name__ == "__main__":
    sys.exit(main())
