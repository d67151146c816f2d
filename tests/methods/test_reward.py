import asyncio
import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import differing, random_model, state, tokens

from postgrad.config.sections import RewardConfig
from postgrad.errors import DataError, TrainingDiverged
from postgrad.graders.reward_model import RewardModelGrader
from postgrad.methods.reward import (
    Ranked,
    Verdict,
    bootstrap_shares,
    freeze_below,
    margins,
    score,
    score_ensemble,
    standardise,
    train_reward_model,
)
from postgrad.models.load import load_policy, load_reward_model, save_reward_model
from postgrad.run import RunDirectory
from postgrad.trainer.local import LocalTrainer
from postgrad.types import Completion, Conversation, Example, Group, Message, Trajectory, Turn


def quiet(done, total):
    pass


def scores(model, answers):
    """Of answers that share no prompt, so that each is computed by itself."""
    return score(model, [Ranked(0, tuple(tuple(a) for a in answers), ())], quiet)[0]


def pairs(num=16):
    """One of two answers to each prompt is better, at random; only learning by heart can tell which."""
    found = []
    for i in range(num):
        prompt = tokens(4 + i % 3, seed=i, vocabulary=256)
        answers = tuple((*prompt, *tokens(3 + j + i % 2, seed=500 + 2 * i + j, vocabulary=256)) for j in range(2))
        found.append(Ranked(len(prompt), answers, (Verdict(i % 2, 1 - i % 2),)))
    return found


def rewards_of(model, answers):
    (rewards,) = score(model, [Ranked(0, tuple(answers), ())], quiet)
    return rewards


def reward_trainer(directory, *, batch_tokens=1000, train_layers=0, seed=0):
    torch.manual_seed(seed)
    model = load_policy(directory, heads=("reward",))
    freeze_below(model, train_layers)
    return LocalTrainer(model, batch_tokens=batch_tokens)


@pytest.fixture(scope="module")
def learned(tiny_model_directory, tmp_path_factory):
    """A reward model that has learned sixteen pairs, and its metrics."""
    trainer = reward_trainer(tiny_model_directory, batch_tokens=100)
    run = RunDirectory(tmp_path_factory.mktemp("reward"))
    cfg = RewardConfig(epochs=15, prompts_per_step=8, learning_rate=2e-3)
    train_reward_model(trainer, pairs(), cfg, run, quiet)
    return trainer.model, run.read_metrics()


def test_sixteen_pairs_are_learned_and_ordered(learned):
    model, metrics = learned
    assert metrics[0]["loss/bradley_terry"] > 0.4
    assert metrics[-1]["loss/bradley_terry"] < 0.1
    assert metrics[-1]["reward/accuracy"] == 1.0
    found = margins(pairs(), score(model, pairs(), quiet))
    assert len(found) == 16
    assert min(found) > 0.5


def test_margins_are_better_minus_worse_and_leave_ties_out(learned):
    model, _ = learned
    group = Ranked(2, ((1, 2, 3), (1, 2, 4, 5), (1, 2, 6)), (Verdict(2, 0), Verdict(0, 1, tie=True), Verdict(1, 2)))
    rewards = scores(model, group.answers)
    assert margins([group], score(model, [group], quiet)) == pytest.approx(
        [rewards[2] - rewards[0], rewards[1] - rewards[2]], abs=1e-5
    )


def test_ties_weights_and_margins_reach_the_loss(tiny_model_directory, tmp_path):
    prompt = (10, 20, 30)
    ranked = [
        Ranked(3, ((*prompt, 40), (*prompt, 50, 60)), (Verdict(0, 1, weight=2.0, margin=1.5), Verdict(1, 0, tie=True))),
        Ranked(3, ((*prompt, 70), (*prompt, 80), (*prompt, 90)), (Verdict(2, 0, weight=0.5), Verdict(1, 2))),
    ]
    trainer = reward_trainer(tiny_model_directory, batch_tokens=1)
    a, b = scores(trainer.model, ranked[0].answers)
    c, d, e = scores(trainer.model, ranked[1].answers)

    def loss(gap):
        return math.log1p(math.exp(-gap))

    expected = (2 * loss(a - b - 1.5) + (loss(b - a) + loss(a - b)) / 2 + 0.5 * loss(e - c) + loss(d - e)) / 4.5
    correct = (2 * (a > b) + 0.5 * (e > c) + (d > e)) / 3.5
    run = RunDirectory(tmp_path)
    train_reward_model(trainer, ranked, RewardConfig(prompts_per_step=2), run, quiet)
    (row,) = run.read_metrics()
    assert row["loss/bradley_terry"] == pytest.approx(expected, abs=1e-5)
    assert row["reward/accuracy"] == pytest.approx(correct)


def test_a_margin_has_to_be_won_by(tiny_model_directory, tmp_path):
    same = Ranked(2, ((1, 2, 3), (1, 2, 3)), (Verdict(0, 1, margin=2.0),))
    run = RunDirectory(tmp_path)
    train_reward_model(reward_trainer(tiny_model_directory), [same], RewardConfig(), run, quiet)
    assert run.read_metrics()[0]["loss/bradley_terry"] == pytest.approx(2.126928, abs=1e-6)


def test_two_equal_answers_cost_the_logarithm_of_two(tiny_model_directory, tmp_path):
    same = Ranked(2, ((1, 2, 3), (1, 2, 3)), (Verdict(0, 1), Verdict(0, 1, tie=True)))
    run = RunDirectory(tmp_path)
    train_reward_model(reward_trainer(tiny_model_directory), [same], RewardConfig(), run, quiet)
    assert run.read_metrics()[0]["loss/bradley_terry"] == pytest.approx(0.693147, abs=1e-6)
    assert run.read_metrics()[0]["reward/accuracy"] == 0.5


def test_standardised_rewards_have_mean_zero_deviation_one_and_their_old_order():
    model = random_model(heads=("reward",))
    answers = [tuple(tokens(3 + i % 5, seed=i)) for i in range(40)]
    before = torch.tensor(scores(model, answers))
    standardise(model, before[:, None])
    after = torch.tensor(scores(model, answers))
    assert float(after.mean()) == pytest.approx(0, abs=1e-5)
    assert float(after.std()) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(after, (before - before.mean()) / before.std(), atol=1e-4, rtol=0)


def test_heads_learn_their_own_bootstrap_and_their_mean_is_the_reward(tiny_model_directory, tmp_path):
    torch.manual_seed(0)
    model = load_policy(tiny_model_directory, heads=("reward",), num_rewards=3)
    cfg = RewardConfig(epochs=6, prompts_per_step=8, learning_rate=2e-3, num_heads=3)
    train_reward_model(LocalTrainer(model, batch_tokens=100), pairs(), cfg, RunDirectory(tmp_path / "run"), quiet)
    rewards_NK = torch.cat(score_ensemble(model, pairs(), quiet))
    assert rewards_NK.shape == (32, 3)
    assert min(float(rewards_NK[:, i].sub(rewards_NK[:, j]).std()) for i, j in ((0, 1), (1, 2), (0, 2))) > 0.01
    standardise(model, rewards_NK)
    after_NK = torch.cat(score_ensemble(model, pairs(), quiet))
    torch.testing.assert_close(after_NK.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    assert float(after_NK.mean(1).std()) == pytest.approx(1, abs=1e-4)
    answers = pairs()[0].answers
    save_reward_model(model, tmp_path / "rm", tokenizer_from=tiny_model_directory, canaries=answers)
    again = load_reward_model(tmp_path / "rm")
    torch.testing.assert_close(torch.cat(score_ensemble(again, pairs(), quiet)), after_NK, atol=1e-4, rtol=0)
    group = Group(
        Example("e", Conversation((Message("user", "?"),))),
        tuple(
            Trajectory(str(i), (Turn(a[:4], Completion(a[4:], (-1.0,) * len(a[4:]), "stop", 0, "")),), "completed")
            for i, a in enumerate(answers)
        ),
    )
    given = asyncio.run(RewardModelGrader(again).grade(group))
    assert [s.value for s in given] == pytest.approx(after_NK[:2].mean(1).tolist(), abs=1e-4)
    assert all(s.explanation.startswith("3 heads, standard deviation 0.") for s in given)


def test_every_head_is_one_lone_head_with_its_weights(tiny_model_directory, tmp_path):
    """The sum that three heads minimise is the mean of three Bradley-Terry losses with weights of mean one."""
    shares_GK = bootstrap_shares(5000, 3, seed=1)
    assert float(shares_GK.min()) > 0
    assert shares_GK.mean(0).tolist() == pytest.approx([1, 1, 1], abs=0.05)
    assert bootstrap_shares(4, 1, seed=1).tolist() == [[1.0]] * 4
    torch.manual_seed(0)
    model = load_policy(tiny_model_directory, heads=("reward",), num_rewards=2)
    ranked, run = pairs(2), RunDirectory(tmp_path)
    before = score_ensemble(model, ranked, quiet)
    cfg = RewardConfig(prompts_per_step=2, num_heads=2, label_smoothing=0.2)
    train_reward_model(LocalTrainer(model, batch_tokens=1), ranked, cfg, run, quiet)
    shares = bootstrap_shares(2, 2, seed=run.seed(0)).tolist()
    total = count = 0.0
    for group, rewards_AK, share in zip(ranked, before, shares, strict=True):
        (verdict,) = group.verdicts
        for k in range(2):
            gap = float(rewards_AK[verdict.better, k] - rewards_AK[verdict.worse, k])
            total += share[k] * (0.8 * math.log1p(math.exp(-gap)) + 0.2 * math.log1p(math.exp(gap)))
            count += share[k]
    assert run.read_metrics()[0]["loss/bradley_terry"] == pytest.approx(total / count, abs=1e-5)


@pytest.fixture
def saved(learned, tiny_model_directory, tmp_path):
    answers = [answer for group in pairs() for answer in group.answers]
    save_reward_model(learned[0], tmp_path / "rm", tokenizer_from=tiny_model_directory, canaries=answers[:8])
    return tmp_path / "rm"


def test_a_saved_reward_model_says_the_same_again(learned, saved):
    answers = [answer for group in pairs() for answer in group.answers]
    assert scores(load_reward_model(saved), answers) == pytest.approx(scores(learned[0], answers), abs=1e-5)


def test_a_reward_model_with_another_head_is_refused(saved):
    tensors = load_file(saved / "heads.safetensors")
    save_file({name: tensor * 0.9 for name, tensor in tensors.items()}, saved / "heads.safetensors")
    with pytest.raises(DataError, match=r"scores a stored answer .* its weights are damaged, train it again"):
        load_reward_model(saved)


def test_a_reward_model_whose_head_is_not_in_its_file_is_refused(saved):
    save_file({"value.weight": torch.ones(1, 32), "value.bias": torch.ones(1)}, saved / "heads.safetensors")
    with pytest.raises(DataError, match="scores a stored answer"):
        load_reward_model(saved)


@pytest.mark.parametrize("name", ["heads.safetensors", "canaries.json"])
def test_a_reward_model_with_a_part_missing_or_cut_off_is_refused(saved, name):
    whole = (saved / name).read_bytes()
    (saved / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        load_reward_model(saved)
    (saved / name).unlink()
    with pytest.raises(DataError, match=r"is not a reward model: heads\.safetensors or canaries\.json is missing"):
        load_reward_model(saved)


def test_canaries_hold_what_the_model_said(learned, saved):
    rows = json.loads((saved / "canaries.json").read_text())
    assert len(rows) == 8
    assert [r["reward"] for r in rows] == pytest.approx(scores(learned[0], [r["ids"] for r in rows]), abs=1e-5)


@pytest.mark.parametrize("stop", [3, 11])
def test_a_killed_run_ends_where_an_uninterrupted_one_does_bit_for_bit(tiny_model_directory, tmp_path, stop):
    cfg = RewardConfig(epochs=3, prompts_per_step=4, learning_rate=1e-3)

    def progress_to(step):
        def progress(done, total):
            if done == step:
                raise KeyboardInterrupt

        return progress

    def train(name, progress, seed):
        run = RunDirectory(tmp_path / name, root_seed=2)
        trainer = reward_trainer(tiny_model_directory, batch_tokens=50, train_layers=1, seed=seed)
        train_reward_model(trainer, pairs(), cfg, run, progress)
        rows = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in run.read_metrics()]
        return rows, state(trainer.model), trainer.trained_tokens

    metrics, weights, trained = train("whole", quiet, 0)
    with pytest.raises(KeyboardInterrupt):
        train("killed", progress_to(stop), 0)
    resumed_metrics, resumed_weights, resumed_trained = train("killed", quiet, 0)
    assert [row["step"] for row in metrics] == list(range(1, 13))
    assert resumed_metrics == metrics
    assert differing(resumed_weights, weights) == []
    assert resumed_trained == trained


@pytest.mark.parametrize(("train_layers", "lowest"), [(1, 1), (2, 0), (3, 0)])
def test_the_topmost_layers_the_last_norm_and_the_heads_weight_learn_and_its_bias_which_cancels_does_not(
    train_layers, lowest
):
    model = random_model(heads=("reward",))
    freeze_below(model, train_layers)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    layers = {int(name.split(".")[3]) for name in names if ".layers." in name}
    assert layers == set(range(lowest, 2))
    assert names - {n for n in names if ".layers." in n} == {
        "lm.model.norm.weight",
        "heads.reward.weight",
    }


def test_an_output_matrix_that_no_reward_reads_is_left_out_or_the_run_stops(tmp_path):
    def run_two_steps(train_all):
        model = random_model("qwen2", heads=("reward",))
        freeze_below(model, 0)
        model.lm.lm_head.weight.requires_grad_(train_all or model.lm.lm_head.weight.requires_grad)
        ranked = [Ranked(1, ((1, 2), (1, 3)), (Verdict(0, 1),)), Ranked(1, ((4, 5), (4, 6, 7)), (Verdict(0, 1),))]
        run = RunDirectory(tmp_path / str(train_all))
        train_reward_model(LocalTrainer(model, batch_tokens=100), ranked, RewardConfig(prompts_per_step=1), run, quiet)
        return run.read_metrics()

    assert len(run_two_steps(False)) == 2
    with pytest.raises(TrainingDiverged, match=r"1 trainable tensors .* 'lm\.lm_head\.weight'"):
        run_two_steps(True)


def test_a_grader_scores_the_sampled_tokens_without_a_graph(learned):
    model, _ = learned
    prompt, answers = (1, 2, 3), ((4, 5), (6,), (7, 8, 9))
    trajectories = tuple(
        Trajectory(str(i), (Turn(prompt, Completion(a, (-1.0,) * len(a), "stop", 0, "")),), "completed")
        for i, a in enumerate(answers)
    )
    graphs = []
    hook = model.heads["reward"].register_forward_hook(lambda module, args, out: graphs.append(out.requires_grad))
    try:
        group = Group(Example("e", Conversation((Message("user", "?"),))), trajectories)
        given = asyncio.run(RewardModelGrader(model).grade(group))
    finally:
        hook.remove()
    assert [s.value for s in given] == pytest.approx(scores(model, [(*prompt, *a) for a in answers]), abs=1e-5)
    assert graphs == [False]
