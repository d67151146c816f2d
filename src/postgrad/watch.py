"""What a person watching the curves would say: explained warnings from the rows of metrics.jsonl.

The rules are pure functions of the latest rows, so a run that was killed and resumed gives the warnings of one that
was not. A warning is given once; its rule is armed again after `REARM` steps on which it found nothing.

One step's batch is small and its metrics are noisy, so a rule that compares two stretches of a curve asks for a
difference of `SURE` standard errors, and a rule that finds no change asks that a change worth having be ruled out as
clearly. tests/test_watch_rates.py holds how often that is wrong.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from statistics import correlation, fmean, median, stdev
from typing import NamedTuple

from postgrad.metrics import METRIC_KEYS, TITLES
from postgrad.run import RunDirectory, tail_metrics

Row = Mapping[str, float]

WINDOW = 400
"""Rows that the rules look back on."""
REARM = 10
SURE = 4.0
"""Standard errors beyond which a difference is not put down to chance."""
PATIENCE = 3
"""Rows in a row outside the healthy range before it is a warning: one may be chance."""
FALL_STEPS, ENTROPY_FALL = 20, 0.6
KL_STEPS, KL_FLOOR, KL_RISE = 4, 5.0, 2.0
LONGER, TOGETHER = 1.3, 0.7
"""Growth of the answers, and its correlation with the reward, that look like verbosity."""
SHARE_RISE = 0.25
SPIKE, SPIKE_ROWS = 10.0, 8
BLIND_STEPS = 10
LIKELIHOOD_STEPS, LIKELIHOOD_FALL = 18, 0.1
"""Steps before the preferred answers' likelihood is judged, and the nats a token by which it may fall."""
COIN_TOSS_STEPS, COIN_TOSS_LOSS, COIN_TOSS_ACCURACY = 15, 0.65, 0.6
LOSS_STEPS, LOSS_WINDOW, LOSS_RISE = 10, 40, 0.25
FLAT_STEPS, FLAT_FALL = 60, 0.015
STALL_STEPS, STALL_KL = 30, 0.1
UNSCORED_STEPS = 2

LOOK = "read the answers of that step with `postgrad samples` before the run goes further"
"""Advice about metrics that have none of their own."""
ADVICE: Mapping[str, str] = {
    "loss/nll": "see whether the model knows the demonstrations' language and format, or lower the learning rate",
    "reward/std": "give the graders something to tell answers apart by, or raise rl.temperature",
    "policy/kl_ref": "raise rl.kl_coef or lower rl.learning_rate; rl.kl_stop ends the run in time",
    "policy/kl_old": "lower rl.learning_rate or rl.epochs: one step moves further than its samples can vouch for",
    "policy/entropy": "raise rl.kl_coef, lower rl.learning_rate, or sample at another rl.temperature",
    "policy/clip_frac": "lower rl.learning_rate, rl.epochs or rl.minibatches: beyond the clip, tokens teach nothing",
    "policy/ratio_mean": "lower rl.learning_rate or rl.epochs; if it persists, sampler and trainer disagree",
    "value/clip_frac": "raise rl.value_clip, or lower rl.learning_rate: the critic is chasing a target that jumps",
    "rollout/truncated_frac": "raise rl.max_tokens or rl.missing_end_penalty: a cut answer never shows its end",
    "rollout/errored_frac": "read the errors with `postgrad samples`, and mend the engine or the environment",
    "rollout/completion_tokens": "raise rl.kl_coef or lower rl.learning_rate: silence seems to be rewarded",
    "group/no_signal_frac": "take prompts that are neither always nor never solved, or raise rl.group_size",
    "sampler/logprob_diff_max": (
        "on a CPU in float32 this is a defect, since engine and trainer share their modules and rounding alone stays "
        "below 1e-4; elsewhere correct for it with importance weights before trusting the policy gradient"
    ),
    "preference/kl": "raise preference.beta or lower preference.learning_rate: the policy leaves its reference",
    "preference/kl_data": "raise preference.beta, or lower preference.learning_rate or preference.epochs",
    "preference/chosen_logprob": (
        "lower preference.learning_rate or preference.epochs, raise preference.beta, or take preference.algorithm = "
        '"orpo", whose loss holds the likelihood up; see whether preferred and other answers differ by little'
    ),
    "optim/grad_norm": "lower the learning rate; gradients are clipped, but their direction is one batch's",
}
"""What to turn where a metric has left its healthy range."""

IMMEDIATE = frozenset({"sampler/logprob_diff_max"})
"""Outside once is enough: these are not noisy."""
OWN_RULE = frozenset({
    "loss/nll", "loss/bradley_terry", "reward/accuracy", "reward/margin", "preference/accuracy", "preference/margin",
    "value/explained_variance",
})  # fmt: skip
"""Noisy or slow to start; a rule of their own says when that has lasted too long."""


@dataclass(frozen=True, slots=True)
class RunWarning:
    step: int
    rule: str
    metric: str
    message: str
    """What was seen, and what it usually means."""
    advice: str
    """What to turn."""


class Rule(NamedTuple):
    name: str
    metric: str
    find: Callable[[Sequence[Row]], str | None]
    """Rows, oldest first, whose last one holds `when` -> what is wrong, or None."""
    advice: str
    when: str
    """The rule is asked on rows with this metric."""


class Watcher:
    """Rows in, warnings out."""

    def __init__(self) -> None:
        self._rows: deque[Row] = deque(maxlen=WINDOW)
        self._quiet: dict[tuple[str, str], int] = {}
        """(rule, metric) of every warning given -> rows since its rule last found something."""

    def push(self, row: Row) -> list[RunWarning]:
        """The warnings that this row gives rise to."""
        self._rows.append(row)
        rows = list(self._rows)
        given = []
        for rule in RULES:
            if rule.when not in row:
                continue
            message = rule.find(rows)
            key = rule.name, rule.metric
            if message is None:
                self._calm(key)
            elif key in self._quiet:
                self._quiet[key] = 0
            elif rule.name != "range" or all(metric != rule.metric for _, metric in self._quiet):
                self._quiet[key] = 0
                given.append(RunWarning(int(row["step"]), rule.name, rule.metric, message, rule.advice))
        return given

    def _calm(self, key: tuple[str, str]) -> None:
        if key in self._quiet:
            self._quiet[key] += 1
            if self._quiet[key] >= REARM:
                del self._quiet[key]


class RunWatch:
    """The rows and warnings of a run that is under way; every warning is kept in warnings.jsonl.

    Begins to read at the first `update`: a resumed run first forgets the rows that it will repeat.
    """

    def __init__(self, run: RunDirectory) -> None:
        self.rows: deque[dict[str, float]] = deque(maxlen=200)
        self.warnings: list[RunWarning] = []
        self._run = run
        self._watcher = Watcher()
        self._offset = 0
        self._kept: set[tuple[int, str, str]] | None = None

    def update(self) -> list[RunWarning]:
        """Read the rows written since, and give their warnings, but for those that warnings.jsonl already has.

        Raises:
            StoreError: the disk is full.
            DataError: a line of either file does not parse.
        """
        if self._kept is None:
            self._kept = {(row["step"], row["rule"], row["metric"]) for row in self._run.read_warnings()}
        rows, self._offset = tail_metrics(self._run.metrics_path, self._offset)
        self.rows.extend(rows)
        found = [warning for row in rows for warning in self._watcher.push(row)]
        self.warnings += found
        new = [w for w in found if (w.step, w.rule, w.metric) not in self._kept]
        for warning in new:
            self._run.write_warning(asdict(warning))
        return new


def healthy(key: str, value: float) -> bool:
    """Whether a metric lies in its healthy range."""
    metric = METRIC_KEYS[key]
    return metric.low <= value <= metric.high


def is_share(key: str) -> bool:
    """Whether a metric lies in [0, 1] and is shown in percent."""
    return key.endswith(("_frac", "/accuracy"))


def show(key: str, value: float) -> str:
    """A metric's value in a sentence."""
    return f"{value:.0%}" if is_share(key) else f"{value:.3g}"


def _points(rows: Sequence[Row], key: str, num: int) -> tuple[list[int], list[float]]:
    """Steps and values of the last `num` rows that have the metric."""
    held = list(islice(((int(row["step"]), row[key]) for row in reversed(rows) if key in row), num))[::-1]
    return [step for step, _ in held], [value for _, value in held]


def _noise(values: Sequence[float]) -> float:
    """Standard deviation of one value about a slow trend, from successive differences (von Neumann et al. 1941)."""
    return math.sqrt(fmean((b - a) ** 2 for a, b in pairwise(values)) / 2)


def _ends(values: Sequence[float], num: int) -> tuple[float, float, float]:
    """Means of the first and the last `num` values, and `SURE` standard errors of their difference."""
    return fmean(values[:num]), fmean(values[-num:]), SURE * _noise(values) * math.sqrt(2 / num)


def _outside(key: str) -> Callable[[Sequence[Row]], str | None]:
    patience = 1 if key in IMMEDIATE else PATIENCE
    metric = METRIC_KEYS[key]

    def find(rows: Sequence[Row]) -> str | None:
        _, values = _points(rows, key, patience)
        if len(values) < patience or any(healthy(key, value) for value in values):
            return None
        name = TITLES.get(key, key)
        side, bound = ("above", metric.high) if values[-1] > metric.high else ("below", metric.low)
        lasted = f" for {patience} steps" if patience > 1 else ""
        return f"{name} at {show(key, values[-1])}, {side} the healthy {show(key, bound)}{lasted} ({metric.meaning})"

    return find


def _entropy_collapse(rows: Sequence[Row]) -> str | None:
    steps, values = _points(rows, "policy/entropy", FALL_STEPS + 1)
    if len(values) < 6:
        return None
    smooth = [fmean(values[i : i + 3]) for i in range(len(values) - 2)]
    top = max(range(len(smooth)), key=lambda i: (smooth[i], i))
    if smooth[top] <= 0 or smooth[-1] > (1 - ENTROPY_FALL) * smooth[top]:
        return None
    return (
        f"entropy fell {1 - smooth[-1] / smooth[top]:.0%} in {steps[-1] - steps[top + 2]} steps, from "
        f"{smooth[top]:.2f} to {smooth[-1]:.2f} nats: the policy settles on few answers and stops exploring, and what "
        "it has not tried by now it will not find"
    )


def _kl_runaway(rows: Sequence[Row]) -> str | None:
    _, values = _points(rows, "policy/kl_ref", 2 * KL_STEPS + 2)
    pairs = [fmean(pair) for pair in pairwise(values)]
    if len(pairs) <= 2 * KL_STEPS:
        return None
    first, middle, last = pairs[-2 * KL_STEPS - 1], pairs[-KL_STEPS - 1], pairs[-1]
    rise = last - middle
    if last < max(KL_FLOOR, *pairs) or rise < max(KL_RISE, 2 * (middle - first)):
        return None
    return (
        f"KL from the reference rose by {rise:.1f} nats an answer in {KL_STEPS} steps, to {last:.1f}, at least "
        "twice as fast as before: the policy is leaving what it knew, which is where rewards get exploited"
    )


def _verbosity(rows: Sequence[Row]) -> str | None:
    key = "rollout/completion_tokens"
    both = [row for row in rows if key in row and "reward/mean" in row]
    steps, lengths = _points(both, key, FALL_STEPS)
    _, rewards = _points(both, "reward/mean", FALL_STEPS)
    if len(lengths) < FALL_STEPS // 2 or min(stdev(lengths), stdev(rewards)) == 0:
        return None
    (before, after, _), (low, high, _) = _ends(lengths, 3), _ends(rewards, 3)
    together = correlation(lengths, rewards)
    if after < LONGER * before or high <= low or together < TOGETHER:
        return None
    return (
        f"answers grew by {after / before - 1:.0%} in {steps[-1] - steps[0]} steps, {before:.0f} to {after:.0f} "
        f"tokens, while the reward rose with them (correlation {together:.2f}): it may be length that is paid for"
    )


def _rising(key: str, meaning: str) -> Callable[[Sequence[Row]], str | None]:
    def find(rows: Sequence[Row]) -> str | None:
        steps, values = _points(rows, key, FALL_STEPS)
        if len(values) < FALL_STEPS // 2:
            return None
        before, after, chance = _ends(values, FALL_STEPS // 3)
        if after - before < max(SHARE_RISE, chance):
            return None
        return f"{TITLES[key]} rose from {before:.0%} to {after:.0%} in {steps[-1] - steps[0]} steps: {meaning}"

    return find


def _spike(rows: Sequence[Row]) -> str | None:
    _, values = _points(rows, "optim/grad_norm", 21)
    usual = median(values[:-1]) if len(values) > SPIKE_ROWS else math.inf
    if values[-1] <= SPIKE * usual or usual == 0:
        return None
    return (
        f"gradient norm {values[-1]:.3g} is {values[-1] / usual:.0f} times the running median {usual:.3g}: this step's "
        "batch held something unlike the others, or the optimisation is coming apart"
    )


def _blind_critic(rows: Sequence[Row]) -> str | None:
    """A fresh critic starts far below zero, and is well as long as it comes up."""
    _, values = _points(rows, "value/explained_variance", BLIND_STEPS)
    if len(values) < BLIND_STEPS or max(values) >= 0:
        return None
    before, after, chance = _ends(values, BLIND_STEPS // 2)
    if after - before > chance or after + chance / math.sqrt(2) > 0:
        return None
    return (
        f"explained variance was negative for {BLIND_STEPS} steps, now {values[-1]:.2f}, and does not rise: the critic "
        "is worse than predicting the mean, so its advantages add noise"
    )


def _coin_toss(rows: Sequence[Row]) -> str | None:
    steps, losses = _points(rows, "loss/bradley_terry", FALL_STEPS)
    _, accuracies = _points(rows, "reward/accuracy", FALL_STEPS)
    if steps[-1] < COIN_TOSS_STEPS or min(len(losses), len(accuracies)) < FALL_STEPS // 2:
        return None
    loss, accuracy = fmean(losses), fmean(accuracies)
    before, after, chance = _ends(accuracies, len(accuracies) // 2)
    lowest = loss - SURE * _noise(losses) / math.sqrt(len(losses))
    if after - before > chance or accuracy + chance / 2 > COIN_TOSS_ACCURACY or lowest < COIN_TOSS_LOSS:
        return None
    return (
        f"after {steps[-1]} steps the reward model's loss is {loss:.3f}, that of a coin toss (ln 2 = 0.693), and it is "
        f"right on {accuracy:.0%} of its training pairs: it has not learned what the raters prefer"
    )


def _likelihood_falling(rows: Sequence[Row]) -> str | None:
    """Every objective but orpo's asks for a difference alone, and both sides may fall to make it."""
    key = "preference/chosen_logprob"
    steps, values = _points(rows, key, WINDOW)
    if len(values) < LIKELIHOOD_STEPS:
        return None
    third = len(values) // 3
    before, after, chance = _ends(values, third)
    if before - after < max(LIKELIHOOD_FALL, chance) or not before > fmean(values[third:-third]) > after:
        return None
    return (
        f"preferred answers became less likely, from {before:.2f} to {after:.2f} nats a token in "
        f"{steps[-1] - steps[0]} steps: the margin grows because the other answers fall faster, and the probability "
        "goes to answers that nobody compared (arXiv 2410.08847)"
    )


def _loss_rising(rows: Sequence[Row]) -> str | None:
    _, losses = _points(rows, "loss/nll", LOSS_WINDOW)
    if len(losses) < LOSS_STEPS:
        return None
    smooth = [median(losses[i : i + 5]) for i in range(len(losses) - 4)]  # one odd batch is no rise
    low = min(smooth)
    by_luck = SURE * _noise(losses)  # of one step, not of a median: the lowest of many is low as it is
    if low <= 0 or smooth[-1] - low <= max(LOSS_RISE * low, by_luck):
        return None
    return (
        f"loss rose by {smooth[-1] / low - 1:.0%}, from its low of {low:.2f} to {smooth[-1]:.2f} nats a "
        "token: the updates undo what was learned"
    )


def _loss_high(rows: Sequence[Row]) -> str | None:
    """A fresh model starts at the logarithm of its vocabulary, and is well as long as it comes down.

    It comes down ever more slowly, so it is judged by the later half of its steps, once its rate has stopped climbing;
    a run of so many steps that `WINDOW` does not hold that half has long come down, or was warned of.
    """
    step = int(rows[-1]["step"])
    _, rates = _points(rows, "optim/learning_rate", 2)
    if not FLAT_STEPS <= step <= 2 * WINDOW or (rates and rates[-1] > rates[0]):
        return None
    steps, losses = _points(rows, "loss/nll", step // 2)
    before, after, chance = _ends(losses, len(losses) // 2)
    if after <= METRIC_KEYS["loss/nll"].high or before - after + chance > FLAT_FALL * before:
        return None
    return (
        f"from step {steps[0]} to {step} the loss went from {before:.2f} to {after:.2f} nats a token; it is above the "
        f"healthy {METRIC_KEYS['loss/nll'].high:g} and does not fall: the model finds the text all but random"
    )


def _stalled(rows: Sequence[Row]) -> str | None:
    _, rewards = _points(rows, "reward/mean", STALL_STEPS)
    _, kls = _points(rows, "policy/kl_ref", STALL_STEPS)
    if len(rewards) < STALL_STEPS or len(kls) < STALL_STEPS or max(abs(kl) for kl in kls) > STALL_KL:
        return None
    before, after, chance = _ends(rewards, STALL_STEPS // 3)
    if abs(after - before) > chance:
        return None
    return (
        f"in {STALL_STEPS} steps the reward went from {before:.3g} to {after:.3g}, within its noise, and the policy is "
        f"still within {max(abs(kl) for kl in kls):.2f} nats an answer of the reference: it is not learning"
    )


def _unscored(rows: Sequence[Row]) -> str | None:
    recent = rows[-UNSCORED_STEPS:]
    if len(recent) < UNSCORED_STEPS or any(row.keys() & {"reward/mean", "teacher/kl"} for row in recent):
        return None
    return f"no answer got a reward in {UNSCORED_STEPS} steps: the graders abstain or fail, and nothing is learned"


def _rules() -> Iterator[Rule]:
    def rule(name: str, metric: str, find: Callable[[Sequence[Row]], str | None], advice: str, when: str = "") -> Rule:
        return Rule(name, metric, find, advice, when or metric)

    yield rule("entropy_collapse", "policy/entropy", _entropy_collapse, ADVICE["policy/entropy"])
    yield rule("kl_runaway", "policy/kl_ref", _kl_runaway, ADVICE["policy/kl_ref"])
    yield rule(
        "verbosity", "rollout/completion_tokens", _verbosity,
        "compare short and long answers with `postgrad samples`, teach the reward about length, or lower "
        "rl.max_tokens; where answers reason before they end, growing may be right",
    )  # fmt: skip
    for name, key, meaning in (
        ("truncation", "rollout/truncated_frac", "the policy no longer comes to an end before the token limit"),
        ("signal_fading", "group/no_signal_frac", "in ever more groups all answers have one reward and teach nothing"),
    ):
        yield rule(name, key, _rising(key, meaning), ADVICE[key])
    yield rule("gradient_spike", "optim/grad_norm", _spike, ADVICE["optim/grad_norm"])
    yield rule(
        "blind_critic", "value/explained_variance", _blind_critic,
        "raise rl.value_coef, sample more answers a step, or use rl.algorithm = \"grpo\", which needs no critic",
    )  # fmt: skip
    yield rule(
        "coin_toss", "loss/bradley_terry", _coin_toss,
        "raise reward.learning_rate or reward.epochs, let more layers learn (reward.train_layers), or look at whether "
        "the raters agree at all",
    )  # fmt: skip
    yield rule(
        "likelihood_falling", "preference/chosen_logprob", _likelihood_falling, ADVICE["preference/chosen_logprob"]
    )
    yield rule(
        "loss_rising", "loss/nll", _loss_rising,
        "lower sft.learning_rate or pretrain.learning_rate, or shuffle rows that change in kind",
    )  # fmt: skip
    yield rule("loss_high", "loss/nll", _loss_high, ADVICE["loss/nll"])
    yield rule(
        "stalled", "reward/mean", _stalled, "raise rl.learning_rate, or lower rl.kl_coef if it holds the policy back"
    )
    yield rule(
        "unscored", "reward/mean", _unscored, "read the graders' explanations with `postgrad samples`",
        when="rollout/truncated_frac",
    )  # fmt: skip
    for key, metric in METRIC_KEYS.items():
        if key not in OWN_RULE and (metric.low, metric.high) != (-math.inf, math.inf):
            yield rule("range", key, _outside(key), ADVICE.get(key, LOOK))


RULES = tuple(_rules())
