import asyncio

import pytest
import torch
from small import differing, state

from postgrad.config import RlConfig, load_recipe
from postgrad.data.mixture import Mixture
from postgrad.engine.local import LocalEngine
from postgrad.errors import ConfigError
from postgrad.methods.grpo import GRPO
from postgrad.methods.ppo import PPO
from postgrad.methods.rl import train_rl
from postgrad.models.load import load_policy
from postgrad.recipes import recipe_path
from postgrad.run import RunDirectory
from postgrad.text.template import Renderer
from postgrad.text.tokenizer import load_tokenizer
from postgrad.trainer.local import FrozenPolicy, LocalTrainer
from postgrad.types import Conversation, Example, Message, Score

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


class ShareOfLowBytes:
    """The share of sampled tokens below 64."""

    name = "low_bytes"

    async def grade(self, group):
        sampled = [t.turns[-1].completion.token_ids for t in group.trajectories]
        return [Score(self.name, sum(token < 64 for token in ids) / len(ids)) for ids in sampled]


def quiet(done, total):
    pass


def stop_at(step):
    def progress(done, total):
        if done == step:
            raise KeyboardInterrupt

    return progress


def reinforce(directory, path, algorithm, *, cfg=CFG, progress=quiet, reference=None, share_model=True):
    """One run; returns (why it stopped, its directory, its trainer)."""
    renderer = Renderer(load_tokenizer(directory))
    examples = [Example(str(i), Conversation((Message("user", "abcdefgh"[i] * (1 + i % 3)),))) for i in range(8)]
    torch.manual_seed(3)
    heads = ("value",) if isinstance(algorithm, PPO) else ()
    model = load_policy(directory, heads=heads)
    trainer = LocalTrainer(model, batch_tokens=60)
    sampler = model if share_model else load_policy(directory)
    run = RunDirectory(path, root_seed=11)
    stopped = asyncio.run(
        train_rl(
            cfg,
            trainer=trainer,
            reference=FrozenPolicy(reference or load_policy(directory), batch_tokens=100),
            engine=LocalEngine(sampler, stop_ids=renderer.stop_ids, decode=renderer.decode),
            algorithm=algorithm,
            graders=[ShareOfLowBytes()],
            dataset=Mixture([(examples, 1.0)], seed=1),
            renderer=renderer,
            run=run,
            progress=progress,
        )
    )
    return stopped, run, trainer


def without_times(run):
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in run.read_metrics()]


ALGORITHMS = {"ppo": PPO(kl_coef=0.02), "grpo": GRPO(kl_coef=0.02)}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_killed_run_ends_where_an_uninterrupted_one_does_bit_for_bit(tiny_model_directory, tmp_path, name):
    algorithm = ALGORITHMS[name]
    _, whole, whole_trainer = reinforce(tiny_model_directory, tmp_path / "whole", algorithm)
    for stop in (1, 5):
        path = tmp_path / f"killed-{stop}"
        with pytest.raises(KeyboardInterrupt):
            reinforce(tiny_model_directory, path, algorithm, progress=stop_at(stop))
        assert len(RunDirectory(path).read_metrics()) == stop
        _, resumed, trainer = reinforce(tiny_model_directory, path, algorithm)
        assert without_times(resumed) == without_times(whole)
        assert differing(state(trainer.model), state(whole_trainer.model)) == []
        assert (trainer.version, trainer.trained_tokens) == (whole_trainer.version, whole_trainer.trained_tokens)
        assert [resumed.read_trajectories(s) for s in range(1, 7)] == [whole.read_trajectories(s) for s in range(1, 7)]


@pytest.mark.parametrize(
    "algorithm", [PPO(kl_coef=0.0, missing_end_penalty=0.0), GRPO(kl_coef=0.0, missing_end_penalty=0.0)]
)
def test_the_reward_rises_and_the_sampler_says_what_the_trainer_says(tiny_model_directory, tmp_path, algorithm):
    changes = {"steps": 12, "prompts_per_step": 6, "group_size": 12, "epochs": 1, "minibatches": 3}
    _, run, trainer = reinforce(tiny_model_directory, tmp_path, algorithm, cfg=CFG.model_copy(update=changes))
    rows = run.read_metrics()
    assert [row["step"] for row in rows] == list(range(1, 13))
    rewards = [row["reward/mean"] for row in rows]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.06
    assert all(row["sampler/logprob_diff_max"] < 1e-5 for row in rows)
    assert rows[0]["policy/kl_ref"] == pytest.approx(0, abs=1e-5)
    assert rows[-1]["policy/kl_ref"] > 0.5
    assert trainer.version == 12 * 3


def test_an_engine_with_its_own_weights_samples_what_a_shared_one_does(tiny_model_directory, tmp_path):
    cfg = CFG.model_copy(update={"steps": 3})
    _, shared, _ = reinforce(tiny_model_directory, tmp_path / "shared", ALGORITHMS["ppo"], cfg=cfg)
    _, own, _ = reinforce(tiny_model_directory, tmp_path / "own", ALGORITHMS["ppo"], cfg=cfg, share_model=False)
    assert without_times(own) == without_times(shared)


def test_every_answer_carries_the_version_that_sampled_it(tiny_model_directory, tmp_path):
    cfg = CFG.model_copy(update={"steps": 2})
    _, run, _ = reinforce(tiny_model_directory, tmp_path, ALGORITHMS["ppo"], cfg=cfg)
    versions = [{turn["policy_version"] for t in run.read_trajectories(s) for turn in t["turns"]} for s in (1, 2)]
    assert versions == [{0}, {4}]


def test_metrics_of_an_update_are_means_over_its_minibatches(tiny_model_directory, tmp_path):
    # Three groups make three minibatches however many are asked for; a pass that hardly learns has ratios of one.
    cfg = CFG.model_copy(update={"steps": 1, "epochs": 1, "minibatches": 8, "learning_rate": 1e-6})
    _, run, _ = reinforce(tiny_model_directory, tmp_path, PPO(), cfg=cfg)
    (row,) = run.read_metrics()
    assert row["policy/ratio_mean"] == pytest.approx(1, abs=0.01)


def test_a_policy_too_far_from_its_reference_ends_the_run_before_the_update(tiny_model_directory, tmp_path):
    torch.manual_seed(0)
    far = load_policy(tiny_model_directory)
    with torch.no_grad():
        far.vocabulary_VD.mul_(-1)
    stopped, run, trainer = reinforce(
        tiny_model_directory, tmp_path, ALGORITHMS["ppo"], cfg=CFG.model_copy(update={"kl_stop": 0.5}), reference=far
    )
    assert stopped.startswith("step 1: KL ")
    assert stopped.endswith("nats an answer exceeds kl_stop 0.5")
    assert trainer.version == 0
    assert run.read_metrics() == []


def test_groups_without_signal_move_nothing(tiny_model_directory, tmp_path):
    cfg = CFG.model_copy(update={"group_size": 1, "steps": 2})
    _, run, trainer = reinforce(tiny_model_directory, tmp_path, GRPO(), cfg=cfg)
    assert [row["group/no_signal_frac"] for row in run.read_metrics()] == [1.0, 1.0]
    assert trainer.version == 0
    assert differing(state(trainer.model), state(load_policy(tiny_model_directory))) == []


@pytest.mark.parametrize("override", ["rl.top_p=0.9", "rl.top_k=20"])
def test_sampling_from_a_part_of_the_distribution_is_refused_by_name(override):
    key = override.split("=")[0].replace(".", r"\.")
    with pytest.raises(ConfigError, match=f"'{key}' .* samples of a part of it"):
        load_recipe(recipe_path("quickstart"), (override,))
