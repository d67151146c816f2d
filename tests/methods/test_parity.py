"""Every algorithm against its paper's formula, written out in plain Python, token by token, in float64."""

import math
import statistics
from dataclasses import dataclass, replace

import pytest
import torch

from postgrad.data.batch import Batch
from postgrad.methods.algorithms import GROUP_RELATIVE
from postgrad.methods.credit import Correction
from postgrad.methods.ppo import PPO
from postgrad.methods.reinforce import Reinforce
from postgrad.protocols import PolicyOutput

GROUPS, SIBLINGS, WIDTH = 2, 3, 7
BETA, LOW, HIGH = 0.1, 0.15, 0.3
TOLERANCE = 1e-6
AS_SAMPLED = Correction(cap=1.5, low=0, high=math.inf)


@dataclass(frozen=True)
class Case:
    """Two groups of three answers; an answer is the list of its trained positions, with a gap as a tool leaves it."""

    answers: list[list[int]]
    tensors: dict[str, torch.Tensor]
    rewards: list[float]

    def rows(self, name):
        return self.tensors[name].tolist()

    def batch(self):
        mask = torch.zeros(len(self.answers), WIDTH, dtype=torch.bool)
        for i, positions in enumerate(self.answers):
            mask[i, positions] = True
        n = len(self.answers)
        return Batch(
            input_ids=torch.zeros(n, WIDTH, dtype=torch.int64),
            lengths=torch.tensor([p[-1] + 1 for p in self.answers]),
            loss_mask=mask,
            rewards=torch.tensor(self.rewards, dtype=torch.float64),
            group_ids=torch.arange(GROUPS).repeat_interleave(SIBLINGS),
            finished=torch.ones(n, dtype=torch.bool),
            sampler_logprobs=self.tensors["sampler"] * mask,
        )


@dataclass(frozen=True)
class Given:
    logprobs: torch.Tensor
    values: torch.Tensor | None = None

    def evaluate(self, batch):
        mask = batch.loss_mask
        values = None if self.values is None else self.values * mask
        return PolicyOutput(self.logprobs * mask, torch.zeros_like(self.logprobs), values)


def random_case(seed):
    g = torch.Generator().manual_seed(seed)
    answers = []
    for _ in range(GROUPS * SIBLINGS):
        start, end = 1 + int(torch.randint(2, (1,), generator=g)), 3 + int(torch.randint(5, (1,), generator=g))
        positions = list(range(start, min(end + 1, WIDTH)))
        answers.append(positions[:1] + positions[2:] if len(positions) > 3 else positions)
    shape = (len(answers), WIDTH)
    old = -torch.rand(shape, generator=g, dtype=torch.float64) * 3 - 0.1

    def near(scale):
        return old + scale * torch.randn(shape, generator=g, dtype=torch.float64)

    tensors = {"old": old, "new": near(0.3), "ref": near(0.5), "sampler": near(0.4)}
    tensors |= {name: torch.randn(shape, generator=g, dtype=torch.float64) for name in ("values", "new_values")}
    return Case(answers, tensors, torch.rand(len(answers), generator=g, dtype=torch.float64).tolist())


def weight(case, i, t):
    """Truncated importance sampling from engine to trainer."""
    return min(math.exp(case.rows("old")[i][t] - case.rows("sampler")[i][t]), AS_SAMPLED.cap)


def clipped(ratio, advantage):
    return min(ratio * advantage, min(max(ratio, 1 - LOW), 1 + HIGH) * advantage)


def siblings(case, i, rewards):
    first = i - i % SIBLINGS
    return rewards[first : first + SIBLINGS]


def relative(case, kind, i):
    """Papers' advantages: of GRPO, Dr. GRPO, MaxRL; and RLOO's, against the others, after a KL penalty."""
    own = siblings(case, i, case.rewards)
    if kind == "rloo":
        old, ref = case.rows("old"), case.rows("ref")
        penalised = [r - BETA * sum(old[j][t] - ref[j][t] for t in case.answers[j]) for j, r in enumerate(case.rewards)]
        others = [penalised[j] for j in range(i - i % SIBLINGS, i - i % SIBLINGS + SIBLINGS) if j != i]
        return penalised[i] - sum(others) / len(others)
    centred = case.rewards[i] - sum(own) / SIBLINGS
    return {
        "grpo": centred / (statistics.stdev(own) + 1e-6),
        "dr_grpo": centred,
        "maxrl": centred / (sum(own) / SIBLINGS + 1e-6),
    }[kind]


def relative_objective(case, name, new, frozen):
    """What the paper maximises, with k2 for its KL term where it has one in the loss."""
    old, ref = case.rows("old"), case.rows("ref")
    num_answers, num_tokens = len(case.answers), sum(map(len, case.answers))
    kind = {"dr_grpo": "dr_grpo", "rloo": "rloo", "maxrl": "maxrl"}.get(name, "grpo")
    total = 0.0
    for i, positions in enumerate(case.answers):
        for t in positions:
            advantage = relative(case, kind, i) * weight(case, i, t)
            ratio = math.exp(new[i][t] - old[i][t])
            term = clipped(ratio, advantage)
            if name == "gspo":
                ratio = math.exp(sum(new[i][u] - old[i][u] for u in positions) / len(positions))
                mean = relative(case, kind, i) * sum(weight(case, i, u) for u in positions) / len(positions)
                term = clipped(ratio, mean)
            if name == "cispo":
                term = min(math.exp(frozen[i][t] - old[i][t]), 1 + HIGH) * advantage * new[i][t]
            if name != "rloo":
                term -= BETA * (new[i][t] - ref[i][t]) ** 2 / 2
            divisor = {"grpo": num_answers * len(positions), "gspo": num_answers * len(positions)}
            divisor |= {"dr_grpo": num_answers * WIDTH, "rloo": num_answers * WIDTH}
            total += term / divisor.get(name, num_tokens)
    return total


def token_rewards(case):
    old, ref = case.rows("old"), case.rows("ref")
    rewards = [[-BETA * (old[i][t] - ref[i][t]) for t in positions] for i, positions in enumerate(case.answers)]
    for row, score in zip(rewards, case.rewards, strict=True):
        row[-1] += score
    return rewards


def whitened(rows, *, shift):
    flat = [x for row in rows for x in row]
    mean, deviation = statistics.fmean(flat), math.sqrt(statistics.variance(flat) + 1e-8)
    return [[(x - mean) / deviation + (0 if shift else mean) for x in row] for row in rows]


def reinforce_objective(case, new, frozen):
    to_come = whitened([[sum(row[k:]) for k in range(len(row))] for row in token_rewards(case)], shift=True)
    terms = [
        clipped(math.exp(new[i][t] - case.rows("old")[i][t]), to_come[i][k] * weight(case, i, t))
        for i, positions in enumerate(case.answers)
        for k, t in enumerate(positions)
    ]
    return statistics.fmean(terms)


PPO_KNOBS = {"gamma": 0.97, "gae_lambda": 0.9, "value_clip": 0.4, "value_coef": 0.3, "dual_clip": 1.4}


def ppo_objective(case, new, frozen):
    """The dual-clipped surrogate minus the clipped value error; whitened rewards, then whitened advantages."""
    gamma, lam, clip, coef, dual = PPO_KNOBS.values()
    rewards, old_values, new_values = (
        whitened(token_rewards(case), shift=False),
        case.rows("values"),
        case.rows("new_values"),
    )
    advantages = [[0.0] * len(positions) for positions in case.answers]
    for i, positions in enumerate(case.answers):
        values = [old_values[i][t] for t in positions] + [0.0]
        for k in range(len(positions)):
            deltas = [rewards[i][j] + gamma * values[j + 1] - values[j] for j in range(k, len(positions))]
            advantages[i][k] = sum((gamma * lam) ** n * delta for n, delta in enumerate(deltas))
    credit, terms = whitened(advantages, shift=True), []
    for i, positions in enumerate(case.answers):
        for k, t in enumerate(positions):
            advantage = credit[i][k] * weight(case, i, t)
            term = clipped(math.exp(new[i][t] - case.rows("old")[i][t]), advantage)
            if advantage < 0:
                term = max(term, dual * advantage)
            value, before, target = new_values[i][t], old_values[i][t], advantages[i][k] + old_values[i][t]
            near = min(max(value, before - clip), before + clip)
            terms.append(term - coef * max((value - target) ** 2, (near - target) ** 2) / 2)
    return statistics.fmean(terms)


COMMON = {"clip_eps": LOW, "clip_eps_high": HIGH, "kl_coef": BETA, "correction": AS_SAMPLED}
ALGORITHMS = {
    "ppo": (PPO(**COMMON, **PPO_KNOBS, whiten_rewards=True), ppo_objective),
    "reinforce": (Reinforce(**COMMON), reinforce_objective),
}
for name, algorithm in GROUP_RELATIVE.items():
    of_paper = replace(algorithm, **COMMON, max_tokens=WIDTH, overlong_share=0.0)
    ALGORITHMS[name] = (of_paper, lambda case, new, frozen, name=name: relative_objective(case, name, new, frozen))


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("seed", range(4))
def test_loss_and_gradient_are_those_of_the_paper(name, seed):
    algorithm, objective = ALGORITHMS[name]
    case = random_case(seed)
    batch, _ = algorithm.prepare(
        case.batch(), Given(case.tensors["old"], case.tensors["values"]), Given(case.tensors["ref"])
    )
    new = case.tensors["new"].clone().requires_grad_()
    output = PolicyOutput(new * batch.loss_mask, torch.zeros_like(new), case.tensors["new_values"] * batch.loss_mask)
    loss = algorithm.loss(batch, output)
    mean = loss.total / loss.count
    mean.backward()
    frozen = case.rows("new")
    assert mean.item() == pytest.approx(-objective(case, frozen, frozen), abs=TOLERANCE)
    for i, positions in enumerate(case.answers):
        for t in positions:
            slope = []
            for step in (1e-5, -1e-5):
                moved = case.rows("new")
                moved[i][t] += step
                slope.append(objective(case, moved, frozen))
            assert new.grad[i, t].item() == pytest.approx(-(slope[0] - slope[1]) / 2e-5, abs=TOLERANCE)
    assert new.grad[~batch.loss_mask].abs().sum() == 0


def test_the_cases_clip_truncate_and_leave_gaps():
    cases = [random_case(seed) for seed in range(4)]
    ratios = [
        math.exp(case.rows("new")[i][t] - case.rows("old")[i][t])
        for case in cases
        for i, positions in enumerate(case.answers)
        for t in positions
    ]
    assert any(r < 1 - LOW for r in ratios)
    assert any(r > 1 + HIGH for r in ratios)
    weights = [weight(case, i, t) for case in cases for i, positions in enumerate(case.answers) for t in positions]
    assert AS_SAMPLED.cap in weights
    assert any(positions[-1] - positions[0] >= len(positions) for case in cases for positions in case.answers)
