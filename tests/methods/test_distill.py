"""On-policy distillation against what can be enumerated: gradients over every answer, and the optimum, the teacher."""

import copy
import itertools
import os
import signal

import pytest
import torch
from small import differing, random_model, state
from test_bandit import REFERENCE, REWARDS, Table, optimum, sampled, total_variation
from test_resume import killed
from tiny_rl import CFG, reinforce, without_times

from postgrad.data.batch import Batch, collate
from postgrad.errors import RolloutError
from postgrad.methods.distill import Distillation
from postgrad.models.load import load_policy
from postgrad.ops.masked import masked_sum
from postgrad.protocols import PolicyOutput
from postgrad.run import RunDirectory
from postgrad.trainer.local import LocalTrainer
from postgrad.trainer.taught import TaughtTrainer, Teacher

WORDS, LENGTH = 5, 2
PROMPT, CONTEXT = (1, 3, 0), (4, 4, 2, 1, 3, 0)
ANSWERS = list(itertools.product(range(WORDS), repeat=LENGTH))


def every_answer() -> Batch:
    rows = [(*PROMPT, *answer) for answer in ANSWERS]
    batch = collate(rows, [(False,) * len(PROMPT) + (True,) * LENGTH] * len(rows))
    return batch.with_(
        group_ids=torch.zeros(len(rows), dtype=torch.int64), finished=torch.ones(len(rows), dtype=torch.bool)
    )


def all_logprobs(model, prompt) -> torch.Tensor:
    """[answers, LENGTH, WORDS] at every state of every answer, by transformers alone."""
    logits = model.lm(torch.tensor([(*prompt, *answer) for answer in ANSWERS])).logits
    return logits[:, len(prompt) - 1 : -1].log_softmax(-1)


def models():
    return random_model(seed=1, vocab_size=WORDS), random_model(seed=2, vocab_size=WORDS)


def analytic_gradient(kind, student, teacher, prompt):
    ours, theirs = all_logprobs(student, PROMPT), all_logprobs(teacher, prompt).detach()
    index = torch.tensor(ANSWERS)[..., None]
    chosen, wanted = ours.gather(2, index)[..., 0], theirs.gather(2, index)[..., 0]
    p = chosen.sum(1).exp()
    if kind == "answers":
        divergence = (p * (chosen - wanted).sum(1)).sum()
    else:
        divergence = (p.detach()[:, None] * (ours.exp() * (ours - theirs)).sum(2)).sum()
    student.zero_grad()
    divergence.backward()
    return torch.cat([parameter.grad.flatten() for parameter in student.parameters()]), p.detach()


@pytest.mark.parametrize("prompt", [PROMPT, CONTEXT], ids=["same prompt", "context"])
@pytest.mark.parametrize(
    ("algorithm", "kind"),
    [
        (Distillation(), "states"),
        (Distillation(gamma=1.0), "answers"),
        (Distillation(estimate="full"), "states"),
    ],
    ids=["sampled", "sampled, all that follows", "full"],
)
def test_the_expected_gradient_is_that_of_the_reverse_kl(algorithm, kind, prompt):
    student, teacher = models()
    expected, p = analytic_gradient(kind, student, teacher, prompt)
    student.zero_grad()
    reader = Teacher(teacher, {PROMPT: prompt}, batch_tokens=1000)
    full = algorithm.estimate == "full"
    trainer = TaughtTrainer(student, reader, batch_tokens=1000) if full else LocalTrainer(student, batch_tokens=1000)
    batch = every_answer()
    batch = batch.with_(sampler_logprobs=trainer.evaluate(batch).logprobs)
    batch, metrics = algorithm.prepare(batch, trainer, reader)
    assert "policy/kl_ref" not in metrics
    for row, probability in enumerate(p.tolist()):
        one = batch.rows(torch.tensor([row]))
        output = trainer._output(one)
        (probability * algorithm.loss(one, output).total).backward()
    found = torch.cat([parameter.grad.flatten() for parameter in student.parameters()])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    assert expected.norm() > 0.1


def test_the_two_gradients_differ_so_that_gamma_matters():
    student, teacher = models()
    states, _ = analytic_gradient("states", student, teacher, PROMPT)
    answers, _ = analytic_gradient("answers", student, teacher, PROMPT)
    assert (states - answers).norm() > 0.05 * states.norm()


def test_the_teacher_reads_its_own_prompt_and_speaks_of_the_students_tokens():
    _, teacher = models()
    reader = Teacher(teacher, {PROMPT: CONTEXT}, batch_tokens=1000)
    batch = every_answer()
    found = reader.evaluate(batch)
    expected = all_logprobs(teacher, CONTEXT).gather(2, torch.tensor(ANSWERS)[..., None])[..., 0]
    torch.testing.assert_close(found.logprobs[:, len(PROMPT) :], expected.detach(), rtol=1e-4, atol=1e-5)
    assert not found.logprobs[:, : len(PROMPT)].any()
    other = Teacher(teacher, {}, batch_tokens=1000).evaluate(batch)
    assert (other.logprobs - found.logprobs).abs().max() > 0.1


class Fixed(Table):
    """The bandit's teacher."""

    def __init__(self, wanted: torch.Tensor) -> None:
        super().__init__()
        self.logits = wanted.log().float()


class Exact(Table):
    """A table whose divergence from a distribution is known."""

    def __init__(self, wanted: torch.Tensor) -> None:
        super().__init__()
        self._wanted = wanted.log().float()

    def _output(self, batch: Batch) -> PolicyOutput:
        out = super()._output(batch)
        logp = self.logits.log_softmax(-1)
        kl = (logp.exp() * (logp - self._wanted)).sum()
        return PolicyOutput(out.logprobs, out.entropy, divergence=kl * batch.loss_mask)


@pytest.mark.parametrize("estimate", ["sampled", "full"])
def test_the_bandit_becomes_its_teacher(estimate):
    wanted = optimum(0.4)
    student = Exact(wanted)
    assert total_variation(student.distribution(), wanted) > 0.3
    algorithm = Distillation(estimate=estimate)
    for step in range(150):
        batch = sampled(student.distribution(), REWARDS, group_size=256, seed=step)
        batch, metrics = algorithm.prepare(batch, student, Fixed(wanted))
        for minibatch in batch.minibatches(2, seed=step):
            student.forward_backward(minibatch, algorithm.loss)
            student.optim_step(2e-2 * (1 - step / 150))
    assert total_variation(student.distribution(), wanted) < 0.005
    assert abs(metrics["teacher/kl"]) < 0.01


def test_the_divergence_is_estimated_from_what_was_sampled():
    wanted = optimum(0.4)
    batch = sampled(REFERENCE, REWARDS, group_size=20_000, seed=0)
    _, metrics = Distillation().prepare(batch, Table(), Fixed(wanted))
    assert metrics["teacher/kl"] == pytest.approx(float(REFERENCE @ (REFERENCE / wanted).log()), abs=0.02)


def _far_teacher(directory):
    torch.manual_seed(0)
    far = load_policy(directory)
    with torch.no_grad():
        far.vocabulary_VD.add_(0.2 * torch.randn_like(far.vocabulary_VD))
    return far


class Dies(TaughtTrainer):
    """In its sixth step, between two minibatches; the checkpoint is of the fourth."""

    def optim_step(self, learning_rate):
        metrics = super().optim_step(learning_rate)
        if self.version == 5 * 4 + 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return metrics


def distil(directory, path, estimate, trainer_class=TaughtTrainer, cfg=CFG):
    far = _far_teacher(directory)

    def taught(model, **options):
        return trainer_class(model, Teacher(far, {}, batch_tokens=60), **options)

    make = LocalTrainer if estimate == "sampled" else taught
    return reinforce(
        directory, path, Distillation(estimate=estimate), reference=far, graders=[], cfg=cfg, make_trainer=make
    )


def _dies(directory, path):
    distil(directory, path, "full", Dies)


def test_a_killed_run_ends_where_an_uninterrupted_one_does_bit_for_bit(tiny_model_directory, tmp_path):
    _, expected, whole = distil(tiny_model_directory, tmp_path / "whole", "full")
    killed(_dies, tiny_model_directory, tmp_path / "killed")
    assert len(RunDirectory(tmp_path / "killed").read_metrics()) == 5
    _, resumed, trainer = distil(tiny_model_directory, tmp_path / "killed", "full")
    assert without_times(resumed) == without_times(expected)
    assert [row["step"] for row in without_times(resumed)] == list(range(1, 7))
    assert differing(state(trainer.model), state(whole.model)) == []


@pytest.mark.parametrize("estimate", ["sampled", "full"])
def test_the_loop_needs_no_grader_and_brings_the_student_nearer(tiny_model_directory, tmp_path, estimate):
    cfg = CFG.model_copy(update={"steps": 8, "group_size": 12, "epochs": 1})
    stopped, run, _ = distil(tiny_model_directory, tmp_path, estimate, cfg=cfg)
    rows = run.read_metrics()
    assert stopped is None
    assert len(rows) == cfg.steps
    assert not any("reward/mean" in row for row in rows)
    assert rows[-1]["teacher/kl"] < (0.95 if estimate == "sampled" else 0.7) * rows[0]["teacher/kl"]


def test_an_engine_that_refuses_every_prompt_ends_the_run(tiny_model_directory, tmp_path):
    from postgrad.engine.local import LocalEngine
    from postgrad.errors import EngineError

    class Broken(LocalEngine):
        async def generate(self, requests, on_token=None):
            raise EngineError("out of order")

    with pytest.raises(RolloutError, match="out of order"):
        reinforce(tiny_model_directory, tmp_path, Distillation(), graders=[], cfg=CFG, make_engine=Broken)


def test_an_exact_loss_is_the_masked_sum_of_the_divergence():
    batch = every_answer()
    batch = batch.with_(old_logprobs=torch.zeros(batch.input_ids.shape), advantages=torch.zeros(batch.input_ids.shape))
    kl = torch.rand(batch.input_ids.shape)
    out = PolicyOutput(copy.deepcopy(batch.old_logprobs), torch.zeros_like(kl), divergence=kl)
    loss = Distillation(estimate="full").loss(batch, out)
    assert loss.total.item() == pytest.approx(float(masked_sum(kl, batch.loss_mask)))
    assert loss.count == len(ANSWERS) * LENGTH
