"""Every number that training writes down: what it means, its healthy range, its title, and which way is better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple


class Metric(NamedTuple):
    meaning: str
    low: float = -math.inf
    high: float = math.inf
    """[low, high] is where a healthy run stays; outside it somebody should look."""


METRIC_KEYS: Mapping[str, Metric] = {
    "loss/nll": Metric("negative log-likelihood of the demonstrations, nats a token", 0, 5),
    "loss/reverse_kl": Metric("KL from student to teacher over the whole vocabulary, nats a token", 0, 5),
    "loss/bradley_terry": Metric("reward-model loss a pair; ln 2 is a coin toss", 0, 0.75),
    "loss/steps": Metric("loss a step of a solution, or an outcome; ln 2 is a coin toss", 0, 0.75),
    "loss/preference": Metric("preference loss a pair; of kto, an answer", 0),
    "loss/policy": Metric("clipped policy-gradient loss a token", -1, 1),
    "loss/value": Metric("half the squared error of the critic, a token", 0, 10),
    "reward/mean": Metric("mean reward of the sampled answers, before KL"),
    "reward/length_coef": Metric("reward for brevity that holds the mean length in its band"),
    "reward/std": Metric("standard deviation of the reward over the sampled answers", 1e-6),
    "reward/penalised_mean": Metric("mean reward after the KL penalty"),
    "reward/accuracy": Metric("share of pairs where the preferred answer scores higher", 0.5, 1),
    "reward/margin": Metric("mean score difference, preferred minus rejected", 0),
    "preference/accuracy": Metric(
        "share of pairs whose preferred answer has the higher implicit reward; of kto, of answers on the right side",
        0.5,
        1,
    ),
    "preference/margin": Metric("implicit reward of preferred answers minus that of the others", 0),
    "preference/chosen_reward": Metric("mean implicit reward of preferred answers"),
    "preference/rejected_reward": Metric("mean implicit reward of the other answers"),
    "preference/chosen_logprob": Metric("mean logprob of a token of preferred answers, nats"),
    "preference/rejected_logprob": Metric("mean logprob of a token of the other answers, nats"),
    "preference/kl": Metric(
        "kto's reference point: KL from the reference on mismatched answers, nats an answer", 0, 20
    ),
    "preference/kl_data": Metric(
        "nats an answer by which the data became less likely: KL(reference || policy) where the reference wrote it",
        -20,
        20,
    ),
    "policy/kl_ref": Metric("KL from the reference, nats an answer (k1)", -1, 10),
    "policy/kl_old": Metric("KL of one step's update from the sampling policy, nats a token (k3)", 0, 0.05),
    "policy/entropy": Metric("mean entropy of the next token, nats", 0.1, 6),
    "policy/clip_frac": Metric("share of tokens whose probability ratio was clipped; gspo clips more", 0, 0.3),
    "teacher/kl": Metric("KL from student to teacher on what the student sampled, nats a token (k1)", -0.1, 5),
    "policy/ratio_mean": Metric("mean probability ratio of new to old policy", 0.5, 2),
    "policy/kl_coef": Metric("weight of the KL penalty in the reward", 0, 1),
    "value/clip_frac": Metric("share of tokens whose value moved further than the clip allows", 0, 0.5),
    "value/explained_variance": Metric("share of the returns' variance that the critic explains", -0.5, 1),
    "rollout/truncated_frac": Metric("share of answers cut at the token limit", 0, 0.5),
    "rollout/errored_frac": Metric("share of rollouts that failed", 0, 0.05),
    "rollout/completion_tokens": Metric("mean length of an answer, tokens", 1),
    "rollout/sampled_tokens": Metric("tokens sampled in the step", 1),
    "rollout/attempts": Metric("times the step sampled prompts until enough groups carried signal", 1, 3),
    "grader/failed_frac": Metric(
        "share of scores missing because a grader raised, hung or gave no finite number", 0, 0.05
    ),
    "group/no_signal_frac": Metric(
        "share of groups that carry no signal: one reward for all, or an answer unscored", 0, 0.5
    ),
    "group/discarded_frac": Metric(
        "share of sampled groups not trained on: without signal, or more than asked for", 0, 0.7
    ),
    "sampler/logprob_diff_max": Metric("largest |sampler - trainer| logprob of a sampled token, nats", 0, 2e-4),
    "sampler/ratio_mean": Metric("mean probability ratio of trainer to sampler, truncated", 0.9, 1.1),
    "sampler/truncated_frac": Metric("share of tokens whose ratio of trainer to sampler was truncated", 0, 0.01),
    "sampler/dropped_frac": Metric("share of answers left out as sampled by another policy", 0, 0.05),
    **{
        f"sampler/dropped_frac_{i}": Metric(
            f"the same in tenth {i} by length, 1 the shortest; absent if none was", 0, 0.1
        )
        for i in range(1, 11)
    },
    "optim/grad_norm": Metric("global gradient norm before clipping", 0, 100),
    "optim/learning_rate": Metric("learning rate of this step", 0, 1e-2),
    "optim/updates_frac": Metric(
        "share of the planned updates taken; kl_old_stop cuts a step short, kl_stop leaves it all out", 0.5, 1
    ),
    "validation/nll": Metric("the same on demonstrations that are never trained on", 0, 5),
    "heldout/utility": Metric("mean declared utility of a policy's answers to held-out prompts"),
    "heldout/win_rate": Metric("share of held-out comparisons won against the initial policy", 0.5, 1),
    "heldout/accuracy": Metric("share of held-out questions answered rightly", 0, 1),
    "validation/bits_per_byte": Metric("loss on text that is never trained on, bits a byte of it", 0, 8),
    "time/tokens_per_s": Metric("tokens trained a second, optimizer included", 0),
    "time/step_s": Metric("seconds for the whole step", 0),
    "time/sample_s": Metric("seconds spent sampling answers", 0),
    "time/grade_s": Metric("seconds spent scoring answers", 0),
    "time/prepare_s": Metric("seconds spent on logprobs, values and advantages", 0),
    "time/update_s": Metric("seconds spent on gradients and the optimizer", 0),
    "time/publish_s": Metric("seconds spent handing new weights to the engine", 0),
}

TITLES: Mapping[str, str] = {
    "loss/nll": "Loss",
    "loss/bradley_terry": "Loss",
    "loss/steps": "Loss",
    "reward/accuracy": "Training accuracy",
    "loss/preference": "Loss",
    "preference/accuracy": "Training accuracy",
    "preference/margin": "Margin",
    "preference/chosen_reward": "Reward of the preferred",
    "preference/rejected_reward": "Reward of the others",
    "preference/chosen_logprob": "Likelihood of the preferred",
    "preference/kl": "KTO's reference point",
    "preference/kl_data": "KL on the data",
    "reward/mean": "Reward",
    "loss/reverse_kl": "KL from the teacher, exact",
    "teacher/kl": "KL from the teacher",
    "policy/kl_ref": "KL from the reference",
    "policy/kl_old": "KL of one update",
    "rollout/completion_tokens": "Answer length",
    "policy/entropy": "Entropy",
    "rollout/truncated_frac": "Truncated answers",
    "rollout/errored_frac": "Failed rollouts",
    "value/explained_variance": "Explained variance",
    "policy/clip_frac": "Clipped tokens",
    "policy/ratio_mean": "Probability ratio",
    "value/clip_frac": "Clipped values",
    "grader/failed_frac": "Failed scores",
    "group/no_signal_frac": "Groups without signal",
    "sampler/logprob_diff_max": "Sampler minus trainer",
    "optim/grad_norm": "Gradient norm",
    "optim/learning_rate": "Learning rate",
    "validation/bits_per_byte": "Validation loss",
    "validation/nll": "Validation loss",
    "heldout/utility": "Utility, round by round",
    "heldout/win_rate": "Win rate against the initial policy",
    "heldout/accuracy": "Accuracy, round by round",
    "time/tokens_per_s": "Speed",
    "time/step_s": "Seconds a step",
}
"""Headings of the metrics that people look at; the rest go by their keys."""

BETTER: Mapping[str, int] = {
    "loss/nll": -1,
    "loss/bradley_terry": -1,
    "loss/steps": -1,
    "loss/preference": -1,
    "preference/accuracy": 1,
    "preference/margin": 1,
    "validation/bits_per_byte": -1,
    "validation/nll": -1,
    "time/tokens_per_s": 1,
    "loss/reverse_kl": -1,
    "teacher/kl": -1,
    "reward/mean": 1,
    "reward/accuracy": 1,
    "value/explained_variance": 1,
    "rollout/truncated_frac": -1,
    "rollout/errored_frac": -1,
    "group/no_signal_frac": -1,
}
"""1 where up is better, -1 where down is; the other metrics have no better, only a healthy range."""
