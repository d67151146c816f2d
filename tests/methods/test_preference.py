"""Preference methods: gradients against plain transformers, whatever the split; and where they lead."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from small import plain_logprobs, random_model, tokens
from test_bandit import BETA, PROMPT, REFERENCE, REWARDS, bandit_model, optimum, total_variation
from torch.nn.functional import logsigmoid

from postgrad.config.preference import PreferenceConfig
from postgrad.methods.preference import (
    DPO,
    IPO,
    KTO,
    ORPO,
    Choice,
    Compared,
    Opinion,
    Reference,
    SimPO,
    _loss,
    _parts,
    _settled,
    answer_logprobs,
    make_objective,
    mismatched_rows,
    train_preference,
)
from postgrad.run import RunDirectory
from postgrad.trainer.local import FrozenPolicy, LocalTrainer

OBJECTIVES = {
    "dpo": DPO(),
    "cdpo": DPO(label_smoothing=0.1),
    "ipo": IPO(),
    "kto": KTO(bad_weight=1.5),
    "orpo": ORPO(),
    "simpo": SimPO(),
}
KL = 0.7


def compared(num=5):
    """Prompts with two to four answers of different lengths, compared in several ways, with weights."""
    found = []
    for i in range(num):
        answers = tuple(tuple(tokens(2 + (i + 3 * j) % 5, seed=100 * i + j)) for j in range(2 + i % 3))
        choices = [Choice(j, (j + 1) % len(answers), 0.5 + j) for j in range(len(answers))]
        opinions = [Opinion(j, (i + j) % 2 == 0, 1.0 + 0.5 * j) for j in range(len(answers))]
        found.append(Compared(tuple(tokens(3 + i, seed=i)), answers, tuple(choices), tuple(opinions)))
    return found


def reference_of(groups):
    return answer_logprobs(FrozenPolicy(random_model(seed=1), batch_tokens=10_000), [c.rows for c in groups])


def gradient(objective, groups, ref, batch_tokens):
    model = random_model(initializer_range=0.05)
    trainer = LocalTrainer(model, batch_tokens=batch_tokens)
    flat = [x for row in ref for x in row]
    metrics = trainer.accumulate(_parts(groups, flat, KL, trainer), lambda part: _loss(model, objective, part))
    return {name: p.grad.double() / trainer._count for name, p in model.named_parameters()}, _settled(metrics)


def plain_loss(name, model, groups, ref):
    """The papers' formulas in float64 over each answer by itself, through transformers alone: (mean, weights)."""
    total = count = 0.0
    for c, theirs in zip(groups, ref, strict=True):
        sums = []
        for answer in c.answers:
            ids = torch.tensor([[*c.prompt, *answer]])
            logp = model.lm(ids).logits[0].double().log_softmax(-1)
            sums.append(logp[:-1].gather(1, ids[0, 1:, None])[len(c.prompt) - 1 :].sum())
        n = [len(a) for a in c.answers]
        if name == "kto":
            for o in c.opinions:
                ratio = 0.1 * (sums[o.answer] - theirs[o.answer] - KL)
                value = torch.sigmoid(ratio if o.good else -ratio)
                total, count = total + o.weight * (1 if o.good else 1.5) * (1 - value), count + o.weight
            continue
        for v in c.choices:
            b, w = v.better, v.worse
            gap = (sums[b] - theirs[b]) - (sums[w] - theirs[w])
            mean_b, mean_w = sums[b] / n[b], sums[w] / n[w]
            odds = [m - torch.log(1 - m.exp()) for m in (mean_b, mean_w)]
            loss = {
                "dpo": -logsigmoid(0.1 * gap),
                "cdpo": -0.9 * logsigmoid(0.1 * gap) - 0.1 * logsigmoid(-0.1 * gap),
                "ipo": ((sums[b] - theirs[b]) / n[b] - (sums[w] - theirs[w]) / n[w] - 5) ** 2,
                "orpo": -mean_b - 0.1 * logsigmoid(odds[0] - odds[1]),
                "simpo": -logsigmoid(2 * (mean_b - mean_w) - 1),
            }[name]
            total, count = total + v.weight * loss, count + v.weight
    return total / count


def difference(found, expected):
    apart = sum(float((found[name] - expected[name]).square().sum()) for name in expected)
    return math.sqrt(apart / sum(float(g.square().sum()) for g in expected.values()))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_and_gradient_are_those_of_plain_transformers_however_the_step_is_split(name):
    groups = compared()
    ref = reference_of(groups)
    plain = random_model(initializer_range=0.05)
    loss = plain_loss(name, plain, groups, ref)
    loss.backward()
    expected = {key: p.grad.double() for key, p in plain.named_parameters()}
    for batch_tokens in (1, 40, 10_000):
        found, metrics = gradient(OBJECTIVES[name], groups, ref, batch_tokens)
        assert difference(found, expected) < 3e-6
        assert metrics["loss/preference"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_metrics_do_not_depend_on_the_split_either(name):
    groups = compared()
    ref = reference_of(groups)
    whole = gradient(OBJECTIVES[name], groups, ref, 10_000)[1]
    assert gradient(OBJECTIVES[name], groups, ref, 1)[1] == pytest.approx(whole, rel=1e-4, abs=1e-5)
    margin = whole["preference/chosen_reward"] - whole["preference/rejected_reward"]
    assert whole["preference/margin"] == pytest.approx(margin)


def test_a_prompt_is_computed_once_for_all_its_answers():
    model = random_model()
    seen = []
    model.body.register_forward_pre_hook(lambda m, a, k: seen.append(k["input_ids"].numel()), with_kwargs=True)
    trainer = LocalTrainer(model, batch_tokens=10_000)
    groups = compared(3)
    trainer.accumulate(_parts(groups, None, 0.0, trainer), lambda part: _loss(model, SimPO(), part))
    assert seen == [sum(len(c.prompt) + sum(map(len, c.answers)) for c in groups)]


def test_logprobs_of_answers_are_those_of_transformers():
    groups = compared()
    plain = random_model(seed=1)
    for c, row in zip(groups, reference_of(groups), strict=True):
        for answer, logprob in zip(c.answers, row, strict=True):
            expected = plain_logprobs(plain.lm, [*c.prompt, *answer])[len(c.prompt) :].sum()
            assert logprob == pytest.approx(float(expected), abs=1e-4)


def test_mismatched_answers_are_those_of_another_prompt_each_used_once_and_cut_to_fit():
    groups = compared(7)
    rows = mismatched_rows(groups, context=100, seed=3)
    assert [prompt for prompt, _ in rows] == [c.prompt for c in groups]
    assert all(answers != c.answers for (_, answers), c in zip(rows, groups, strict=True))
    assert sorted(answers for _, answers in rows) == sorted(c.answers for c in groups)
    short = mismatched_rows(groups, context=11, seed=3)
    assert {len(p) + len(a) <= 11 for p, answers in short for a in answers} == {True}
    assert min(len(a) for _, answers in short for a in answers) > 0


def test_the_rarer_kind_of_answer_weighs_more_in_kto():
    cfg = PreferenceConfig(algorithm="kto", learning_rate=1e-5)
    good, bad = (Compared((1,), ((2,),), (), (Opinion(0, kind),)) for kind in (True, False))
    assert make_objective(cfg, [good] * 3 + [bad]) == KTO(good_weight=1.0, bad_weight=3.0)
    assert make_objective(cfg, [good] * 2) == KTO()


def test_what_a_recipe_says_reaches_the_objective_and_what_it_leaves_out_is_its_own():
    def made(**keys):
        return make_objective(PreferenceConfig(learning_rate=1e-5, **keys), compared())

    assert made(algorithm="dpo") == DPO() == DPO(beta=0.1, label_smoothing=0.0)
    assert made(algorithm="dpo", beta=0.3, label_smoothing=0.2) == DPO(0.3, 0.2)
    assert made(algorithm="ipo", beta=0.3) == IPO(0.3)
    assert made(algorithm="orpo", beta=0.3) == ORPO(0.3)
    assert made(algorithm="simpo") == SimPO(2.0, 1.0)
    assert made(algorithm="simpo", beta=2.5, gamma=0.3) == SimPO(2.5, 0.3)


def planted(*, noiseless=False):
    """Every two arms, preferred as Bradley and Terry would under the rewards, or always the better one."""
    arms = range(len(REWARDS))
    chance = {(i, j): float(torch.sigmoid(REWARDS[i] - REWARDS[j])) for i in arms for j in arms if i != j}
    if noiseless:
        chance = {pair: 1.0 for pair, p in chance.items() if p > 0.5}
    choices = tuple(Choice(i, j, p) for (i, j), p in chance.items())
    opinions = [Opinion(c.better, True, c.weight) for c in choices] + [
        Opinion(c.worse, False, c.weight) for c in choices
    ]
    return Compared(PROMPT, tuple((arm,) for arm in arms), choices, tuple(opinions))


def learned(objective, data, tmp_path, *, steps=250, rate=2e-2):
    model = bandit_model(heads=())
    trainer = LocalTrainer(model, batch_tokens=10_000)
    cfg = PreferenceConfig(algorithm="dpo", epochs=steps, prompts_per_step=1, learning_rate=rate)
    run = RunDirectory(tmp_path)
    reference = Reference(answer_logprobs(FrozenPolicy(model, batch_tokens=10_000), [data.rows]))
    train_preference(trainer, [data], objective, cfg, run, lambda done, total: None, reference=reference)
    with torch.no_grad():
        return model.lm(torch.tensor([PROMPT])).logits[0, -1].double().softmax(-1), run.read_metrics()


def test_dpo_finds_the_optimum_of_the_reward_that_the_preferences_come_from(tmp_path):
    policy, rows = learned(DPO(beta=BETA), planted(), tmp_path)
    assert total_variation(REFERENCE, optimum(BETA)) > 0.3
    assert total_variation(policy, optimum(BETA)) < 0.01
    assert rows[0]["preference/margin"] == pytest.approx(0, abs=1e-5)
    assert rows[0]["loss/preference"] == pytest.approx(math.log(2), abs=1e-5)


def test_conservative_dpo_finds_it_where_the_share_of_flipped_labels_is_known(tmp_path):
    """Two arms: with certain labels and a tenth taken to be wrong, beta d ends at log 9."""
    data = replace(planted(), choices=(Choice(0, 1),))
    policy, _ = learned(DPO(beta=1.0, label_smoothing=0.1), data, tmp_path)
    moved = (policy / REFERENCE).log()
    assert float(moved[0] - moved[1]) == pytest.approx(math.log(9), abs=0.05)


def test_ipo_ends_at_the_distance_that_it_asks_for(tmp_path):
    data = replace(planted(), choices=(Choice(0, 1),))
    policy, _ = learned(IPO(beta=0.25), data, tmp_path)
    moved = (policy / REFERENCE).log()
    assert float(moved[0] - moved[1]) == pytest.approx(2, abs=0.02)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_method_widens_the_margin_and_says_what_is_preferred_more_often(name, tmp_path):
    data = planted(noiseless=True)
    policy, rows = learned(OBJECTIVES[name], data, tmp_path, steps=40)
    assert rows[-1]["preference/margin"] > rows[0]["preference/margin"] + 0.01
    assert rows[-1]["preference/accuracy"] >= rows[0]["preference/accuracy"]
    assert float(policy @ REWARDS) > float(REFERENCE @ REWARDS) + 0.2
    best = int(REWARDS.argmax())
    assert float(policy[best]) > 2 * float(REFERENCE[best])
