import pytest
import torch
from small import differing, state
from tiny_rl import CFG, EXAMPLES, ShareOfLowBytes, reinforce, without_times

from postgrad.config.load import load_recipe
from postgrad.errors import ConfigError, DataError, RolloutError
from postgrad.methods.grpo import GRPO
from postgrad.methods.ppo import PPO
from postgrad.methods.schedule import rate_share
from postgrad.models.load import load_policy
from postgrad.recipes import recipe_path
from postgrad.trainer.local import LocalTrainer
from postgrad.types import Conversation, Example, Message, Score

ALGORITHMS = {
    "ppo": PPO(kl_coef=0.02),
    "grpo": GRPO(kl_coef=0.02),
    "ppo with a steered coefficient": PPO(kl_coef=0.02, kl_target=0.5),
}


def changed(**values):
    return CFG.model_copy(update=values)


@pytest.mark.parametrize(
    "algorithm", [PPO(kl_coef=0.0, missing_end_penalty=0.0), GRPO(kl_coef=0.0, missing_end_penalty=0.0)]
)
def test_the_reward_rises_and_the_sampler_says_what_the_trainer_says(tiny_model_directory, tmp_path, algorithm):
    cfg = changed(steps=12, prompts_per_step=6, group_size=12, epochs=1, minibatches=3)
    _, run, trainer = reinforce(tiny_model_directory, tmp_path, algorithm, cfg=cfg)
    rows = run.read_metrics()
    assert [row["step"] for row in rows] == list(range(1, 13))
    rewards = [row["reward/mean"] for row in rows]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.06
    assert all(row["sampler/logprob_diff_max"] < 1e-5 for row in rows)
    assert rows[0]["policy/kl_ref"] == pytest.approx(0, abs=1e-5)
    assert rows[-1]["policy/kl_ref"] > 0.5
    assert trainer.version == 12 * 3


def test_an_engine_with_its_own_weights_samples_what_a_shared_one_does(tiny_model_directory, tmp_path):
    cfg = changed(steps=3)
    _, shared, _ = reinforce(tiny_model_directory, tmp_path / "shared", ALGORITHMS["ppo"], cfg=cfg)
    _, own, _ = reinforce(tiny_model_directory, tmp_path / "own", ALGORITHMS["ppo"], cfg=cfg, share_model=False)
    assert without_times(own) == without_times(shared)


def test_every_answer_carries_the_version_that_sampled_it(tiny_model_directory, tmp_path):
    _, run, _ = reinforce(tiny_model_directory, tmp_path, ALGORITHMS["ppo"], cfg=changed(steps=2))
    versions = [{turn["policy_version"] for t in run.read_trajectories(s) for turn in t["turns"]} for s in (1, 2)]
    assert versions == [{0}, {4}]


def test_metrics_of_an_update_are_means_over_its_minibatches(tiny_model_directory, tmp_path):
    # Three groups make three minibatches however many are asked for; a pass that hardly learns has ratios of one.
    cfg = changed(steps=1, epochs=1, minibatches=8, learning_rate=1e-6)
    _, run, trainer = reinforce(tiny_model_directory, tmp_path, PPO(), cfg=cfg)
    (row,) = run.read_metrics()
    assert row["policy/ratio_mean"] == pytest.approx(1, abs=0.01)
    assert trainer.version == 3
    assert row["optim/updates_frac"] == 1.0


def test_a_policy_too_far_from_its_reference_ends_the_run_before_the_update(tiny_model_directory, tmp_path):
    torch.manual_seed(0)
    far = load_policy(tiny_model_directory)
    with torch.no_grad():
        far.vocabulary_VD.mul_(-1)
    stopped, run, trainer = reinforce(
        tiny_model_directory, tmp_path, ALGORITHMS["ppo"], cfg=changed(kl_stop=0.5), reference=far
    )
    assert stopped.startswith("step 1: KL ")
    assert stopped.endswith("nats an answer exceeds kl_stop 0.5")
    assert trainer.version == 0
    (row,) = run.read_metrics()
    assert row["policy/kl_ref"] > 0.5
    assert row["optim/updates_frac"] == 0
    assert row["rollout/sampled_tokens"] == sum(
        len(turn["token_ids"]) for record in run.read_trajectories(1) for turn in record["turns"]
    )
    assert {"reward/mean", "time/prepare_s"} <= row.keys()
    assert not {"loss/policy", "optim/grad_norm", "time/update_s"} & row.keys()


# The update ends early.


class Recording(LocalTrainer):
    """Keeps what every minibatch showed."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.moved = []

    def forward_backward(self, batch, loss):
        metrics = super().forward_backward(batch, loss)
        self.moved.append(metrics["policy/kl_old"])
        return metrics


def test_the_rest_of_a_step_is_left_out_once_the_policy_has_moved_too_far(tiny_model_directory, tmp_path):
    cfg = changed(steps=1, epochs=4, minibatches=3, learning_rate=2e-3)
    _, free_run, free = reinforce(
        tiny_model_directory, tmp_path / "free", ALGORITHMS["ppo"], cfg=cfg, make_trainer=Recording
    )
    assert len(free.moved) == free.version == 12
    first = next(i for i in range(4, 12) if free.moved[i] > max(free.moved[:i]))
    assert first < 11
    beyond = cfg.model_copy(update={"kl_old_stop": free.moved[first] * 0.9999})
    _, run, trainer = reinforce(
        tiny_model_directory, tmp_path / "cut", ALGORITHMS["ppo"], cfg=beyond, make_trainer=Recording
    )
    assert trainer.moved == free.moved[: first + 1]
    assert trainer.version == first + 1
    (row,) = run.read_metrics()
    assert row["optim/updates_frac"] == (first + 1) / 12
    last_pass = free.moved[first // 3 * 3 : first + 1]
    assert row["policy/kl_old"] == pytest.approx(sum(last_pass) / len(last_pass)), "over the pass that was cut"
    assert free_run.read_metrics()[0]["optim/updates_frac"] == 1.0


def test_a_step_that_is_cut_short_is_followed_by_a_whole_one(tiny_model_directory, tmp_path):
    cfg = changed(steps=2, epochs=3, minibatches=1, kl_old_stop=1e-12)
    _, run, trainer = reinforce(tiny_model_directory, tmp_path, ALGORITHMS["grpo"], cfg=cfg)
    assert [row["optim/updates_frac"] for row in run.read_metrics()] == [2 / 3, 2 / 3]
    assert trainer.version == 4


# Rewards that teach nothing, or are missing.


class Constant:
    name = "constant"

    def __init__(self, value=0.5, explanation=""):
        self.score = Score(self.name, value, explanation=explanation)

    async def grade(self, group):
        return [self.score] * len(group.trajectories)


class Broken:
    """Raises for the examples of these steps and prompts, else scores as `ShareOfLowBytes` does."""

    name = "broken"

    def __init__(self, fails):
        self.fails = fails

    async def grade(self, group):
        version = group.trajectories[0].turns[0].completion.policy_version
        if self.fails(version, group.example.id):
            raise ConnectionError("the judge is down")
        return await ShareOfLowBytes().grade(group)


def test_equal_rewards_move_nothing_and_every_step_still_has_its_line(tiny_model_directory, tmp_path):
    algorithm = GRPO(missing_end_penalty=0.0)
    stopped, run, trainer = reinforce(tiny_model_directory, tmp_path, algorithm, graders=[Constant()])
    assert stopped is None
    rows = run.read_metrics()
    assert [row["step"] for row in rows] == list(range(1, 7))
    for row in rows:
        assert row["group/no_signal_frac"] == row["group/discarded_frac"] == 1.0
        assert row["reward/mean"] == 0.5
        assert "loss/policy" not in row
    assert trainer.version == 0
    assert differing(state(trainer.model), state(load_policy(tiny_model_directory))) == []


def test_a_grader_that_fails_on_some_prompts_costs_those_groups(tiny_model_directory, tmp_path):
    grader = Broken(lambda version, example: example in "0246")
    _, run, trainer = reinforce(tiny_model_directory, tmp_path, ALGORITHMS["ppo"], graders=[grader])
    rows = run.read_metrics()
    assert len(rows) == 6
    assert trainer.version > 0
    failing = {row["step"]: row["grader/failed_frac"] for row in rows}
    for step, share in failing.items():
        records = run.read_trajectories(step)
        unscored = [r for r in records if r["reward"] is None]
        assert len(unscored) / len(records) == pytest.approx(share)
        assert {r["example_id"] for r in unscored} <= set("0246")
        for record in unscored:
            assert record["scores"][0]["explanation"] == "failed: ConnectionError: the judge is down"
    assert 0 < sum(failing.values()) < 6
    assert rows[0]["group/no_signal_frac"] == pytest.approx(failing[1])


@pytest.mark.parametrize("value", [float("nan"), None])
def test_three_steps_without_a_score_end_the_run_in_a_sentence(tiny_model_directory, tmp_path, value):
    why = "grader 'constant' failed: the score nan with weight 1 is not finite" if value else "every grader abstained"
    with pytest.raises(
        RolloutError,
        match=f"step 3: no answer was scored in 3 steps in a row; {why}; mend that and run the same command again",
    ):
        reinforce(tiny_model_directory, tmp_path, ALGORITHMS["ppo"], graders=[Constant(value)])


def test_a_short_run_without_a_score_is_no_success(tiny_model_directory, tmp_path):
    with pytest.raises(RolloutError, match="step 2: no answer was scored in 2 steps in a row; grader 'broken' failed"):
        reinforce(
            tiny_model_directory, tmp_path, ALGORITHMS["ppo"], cfg=changed(steps=2), graders=[Broken(lambda *_: True)]
        )


def test_a_run_whose_grader_was_mended_goes_on_from_its_checkpoint(tiny_model_directory, tmp_path):
    # After its fourth update-rich step the judge goes down, and the run ends at step 7.
    cfg = changed(steps=8)
    graders = [Broken(lambda version, _: version >= 4 * 4)]
    with pytest.raises(RolloutError, match="step 7: no answer was scored in 3 steps in a row"):
        reinforce(tiny_model_directory, tmp_path / "mended", ALGORITHMS["ppo"], cfg=cfg, graders=graders)
    _, mended, trainer = reinforce(tiny_model_directory, tmp_path / "mended", ALGORITHMS["ppo"], cfg=cfg)
    _, whole, whole_trainer = reinforce(tiny_model_directory, tmp_path / "whole", ALGORITHMS["ppo"], cfg=cfg)
    assert without_times(mended) == without_times(whole)
    assert differing(state(trainer.model), state(whole_trainer.model)) == []


def test_unscored_steps_before_a_checkpoint_count_after_it(tiny_model_directory, tmp_path):
    # Steps 3 and 4 are unscored, then the process ends; the resumed run gives up at step 5, as one left alone would.
    graders = [Broken(lambda version, _: version >= 2 * 4)]
    with pytest.raises(RolloutError, match="step 5: no answer was scored in 3 steps in a row"):
        reinforce(tiny_model_directory, tmp_path, ALGORITHMS["ppo"], graders=graders)
    assert (tmp_path / "checkpoints" / "step-0004").exists()
    with pytest.raises(RolloutError, match="step 5: no answer was scored in 3 steps in a row"):
        reinforce(tiny_model_directory, tmp_path, ALGORITHMS["ppo"], graders=graders)


# Prompts that do not fit.


def with_long(*ids):
    return [Example(e.id, Conversation((Message("user", "x" * 600),))) if e.id in ids else e for e in EXAMPLES]


def test_a_prompt_beyond_the_context_is_recorded_and_the_others_are_learned_from(tiny_model_directory, tmp_path):
    _, run, trainer = reinforce(tiny_model_directory, tmp_path, ALGORITHMS["ppo"], examples=with_long("3"))
    rows = run.read_metrics()
    assert len(rows) == 6
    errored = [r for step in range(1, 7) for r in run.read_trajectories(step) if r["status"] == "errored"]
    assert {r["example_id"] for r in errored} == {"3"}
    assert all("does not fit the model's context" in r["error"] and r["turns"] == [] for r in errored)
    assert sum(row["rollout/errored_frac"] * 12 for row in rows) == pytest.approx(len(errored))
    assert 2 * 4 <= len(errored) <= 3 * 4
    assert trainer.version == 6 * 4


def test_a_step_of_nothing_but_failed_rollouts_has_its_line(tiny_model_directory, tmp_path):
    cfg = changed(steps=8, prompts_per_step=1)
    _, run, trainer = reinforce(tiny_model_directory, tmp_path, ALGORITHMS["grpo"], cfg=cfg, examples=with_long("3"))
    (lost,) = [row for row in run.read_metrics() if row["rollout/errored_frac"] == 1]
    assert lost["group/no_signal_frac"] == 1
    assert lost["rollout/sampled_tokens"] == 0
    assert "rollout/completion_tokens" not in lost
    assert "reward/mean" not in lost
    assert trainer.version == 7 * 2


def test_a_data_set_whose_every_prompt_is_too_long_is_refused_before_the_run(tiny_model_directory, tmp_path):
    long = with_long(*"01234567")
    with pytest.raises(
        DataError,
        match=r"no prompt leaves room for 'rl.max_tokens' .* would allow 506: '0' \(\d+ tokens\), '1'",
    ):
        reinforce(tiny_model_directory, tmp_path, ALGORITHMS["ppo"], examples=long)
    assert not (tmp_path / "metrics.jsonl").exists()
    with pytest.raises(DataError, match=r"'9' \(\d+ tokens\) and 6 more; shorten"):
        reinforce(
            tiny_model_directory,
            tmp_path,
            ALGORITHMS["ppo"],
            examples=[Example(str(i), long[0].prompt) for i in range(16)],
        )


# Numbers that do not divide.


def test_more_prompts_a_step_than_there_are_examples_are_answered_anew(tiny_model_directory, tmp_path):
    cfg = changed(steps=1, prompts_per_step=20, group_size=3, minibatches=7)
    _, run, trainer = reinforce(tiny_model_directory, tmp_path, ALGORITHMS["ppo"], cfg=cfg)
    records = run.read_trajectories(1)
    assert len(records) == 60
    assert len({r["id"] for r in records}) == 60
    answers = {(r["example_id"], tuple(r["turns"][0]["token_ids"])) for r in records}
    assert len(answers) > 55, "eight examples, each answered by some 7 siblings and none copied"
    assert trainer.version == 2 * 7


def test_groups_of_one_are_enough_for_a_critic(tiny_model_directory, tmp_path):
    cfg = changed(group_size=1, steps=2, minibatches=2)
    _, run, trainer = reinforce(tiny_model_directory, tmp_path, ALGORITHMS["ppo"], cfg=cfg)
    assert [row["group/no_signal_frac"] for row in run.read_metrics()] == [0.0, 0.0]
    assert trainer.version == 2 * 2 * 2


# Dynamic sampling.


class Parity:
    """Only every other prompt can tell its answers apart."""

    name = "parity"

    async def grade(self, group):
        scores = await ShareOfLowBytes().grade(group)
        return scores if int(group.example.id) % 2 else [Score(self.name, 0.25)] * len(scores)


def test_a_step_samples_on_until_enough_groups_carry_signal(tiny_model_directory, tmp_path):
    trained = []

    class Kept(GRPO):
        def prepare(self, batch, policy, reference):
            trained.append(len(torch.unique(batch.group_ids)))
            return super().prepare(batch, policy, reference)

    algorithm = Kept(missing_end_penalty=0.0)
    cfg = changed(sampling_attempts=4, steps=8)
    _, run, _ = reinforce(tiny_model_directory, tmp_path, algorithm, cfg=cfg, graders=[Parity()])
    rows = run.read_metrics()
    assert {row["rollout/attempts"] for row in rows} <= {1.0, 2.0, 3.0, 4.0}
    assert max(row["rollout/attempts"] for row in rows) >= 2
    for row in rows:
        records = run.read_trajectories(row["step"])
        groups = {r["group"]: int(r["example_id"]) % 2 for r in records}
        assert len(groups) == 3 * row["rollout/attempts"]
        with_signal = sum(groups.values())
        assert row["group/no_signal_frac"] == pytest.approx(1 - with_signal / len(groups))
        assert row["group/discarded_frac"] == pytest.approx(1 - min(3, with_signal) / len(groups))
        assert row["rollout/attempts"] == 4 or with_signal >= 3, "it stops at enough, or at the bound"
        last = [g for g in groups if g >= len(groups) - 3]
        assert sum(groups[g] for g in groups if g not in last) < 3, "and no attempt is made that is not needed"
    assert trained == [min(3, round(3 * r["rollout/attempts"] * (1 - r["group/no_signal_frac"]))) for r in rows]


def test_the_first_attempt_of_a_step_does_not_depend_on_what_earlier_steps_needed(tiny_model_directory, tmp_path):
    cfg = changed(sampling_attempts=2, steps=4)
    algorithm = GRPO(missing_end_penalty=0.0)
    _, easy, _ = reinforce(tiny_model_directory, tmp_path / "easy", algorithm, cfg=cfg)
    _, hard, _ = reinforce(tiny_model_directory, tmp_path / "hard", algorithm, cfg=cfg, graders=[Parity()])
    assert [r["rollout/attempts"] for r in easy.read_metrics()] == [1, 1, 1, 1]
    assert 2 in [r["rollout/attempts"] for r in hard.read_metrics()]
    for step in range(1, 5):
        first, other = ([r["example_id"] for r in run.read_trajectories(step)] for run in (easy, hard))
        assert other[: len(first)] == first


# Schedules.


def test_the_rate_climbs_and_then_stays_falls_in_a_line_or_along_a_cosine():
    def shares(kind):
        return [rate_share(kind, step, 20, warmup_frac=0.2) for step in (0, 1, 3, 4, 8, 12, 20)]

    up = [0.25, 0.5, 1.0]
    assert shares("constant") == [*up, 1.0, 1.0, 1.0, 1.0]
    assert shares("linear") == pytest.approx([*up, 1.0, 0.775, 0.55, 0.1])
    assert shares("cosine") == pytest.approx([*up, 1.0, 0.1 + 0.9 * (2 + 2**0.5) / 4, 0.55, 0.1])


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_the_first_and_only_steps_are_taken_at_the_peak_without_a_warmup(kind):
    assert rate_share(kind, 0, 1, warmup_frac=0.0) == 1.0
    assert rate_share(kind, 0, 10, warmup_frac=0.0) == 1.0
    assert rate_share(kind, 9, 10, warmup_frac=1.0) == 1.0


def test_a_run_steps_at_the_rates_of_its_schedule(tiny_model_directory, tmp_path):
    def train(name, **keys):
        cfg = changed(**keys)
        rows = reinforce(tiny_model_directory, tmp_path / name, ALGORITHMS["grpo"], cfg=cfg)[1].read_metrics()
        return [row["optim/learning_rate"] / cfg.learning_rate for row in rows]

    assert train("constant") == [1.0] * 6
    assert train("warm", warmup_frac=0.5) == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1])
    expected = [rate_share("cosine", step, 6, warmup_frac=0.0) for step in range(6)]
    assert train("cosine", schedule="cosine") == pytest.approx(expected)
    assert expected[-1] < 0.3


def test_the_rate_is_the_one_that_the_optimizer_takes(tiny_model_directory, tmp_path):
    """Adam's first step is as long as the rate, so a warmup of ten steps moves a weight a tenth as far."""

    def moved(name, **keys):
        _, _, trainer = reinforce(
            tiny_model_directory,
            tmp_path / name,
            ALGORITHMS["grpo"],
            cfg=changed(steps=10, epochs=1, minibatches=1, **keys),
            make_trainer=FirstStep,
        )
        return trainer.first

    assert moved("warm", warmup_frac=1.0) == pytest.approx(moved("flat") / 10, rel=0.01)


class FirstStep(LocalTrainer):
    first = None

    def optim_step(self, learning_rate):
        before = state(self.model)
        metrics = super().optim_step(learning_rate)
        if self.first is None:
            self.first = max(float((tensor - before[n]).abs().max()) for n, tensor in state(self.model).items())
        return metrics


@pytest.mark.parametrize("override", ["rl.top_p=0.9", "rl.top_k=20"])
def test_sampling_from_a_part_of_the_distribution_is_refused_by_name(override):
    key = override.split("=")[0].replace(".", r"\.")
    with pytest.raises(ConfigError, match=f"'{key}' .* samples of a part of it"):
        load_recipe(recipe_path("quickstart"), (override,))


@pytest.mark.parametrize(
    "override", ["rl.kl_old_stop=0", "rl.sampling_attempts=0", "rl.schedule=step", "sft.warmup_frac=1.5"]
)
def test_values_out_of_range_are_refused_by_name(override):
    with pytest.raises(ConfigError, match=f"'{override.split('=')[0]}'"):
        load_recipe(recipe_path("quickstart"), (override,))
