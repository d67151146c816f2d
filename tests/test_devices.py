"""The real paths on a device other than the CPU (tests/pretend.py): nothing mixes devices; results are the CPU's."""

import asyncio
import contextlib

import pytest
import torch
from pretend import OnCuda, pretended_cuda
from small import siblings_batch, tokens

from postgrad.bench.machine import SIZE, Machine
from postgrad.config.sections import RewardConfig
from postgrad.data.batch import collate
from postgrad.engine.local import LocalEngine
from postgrad.errors import ConfigError
from postgrad.graders.reward_model import RewardModelGrader
from postgrad.methods.grpo import GRPO
from postgrad.methods.ppo import PPO
from postgrad.methods.pretrain import TokenStream, read_next_tokens
from postgrad.methods.reward import Ranked, Verdict, freeze_below, score, standardise, train_reward_model
from postgrad.models.fresh import fresh_policy
from postgrad.models.load import load_policy, load_reward_model, save_reward_model
from postgrad.models.placement import place
from postgrad.ops.losses import nll_loss
from postgrad.protocols import Loss
from postgrad.run import RunDirectory
from postgrad.trainer.local import FrozenPolicy, LocalTrainer
from postgrad.types import (
    Completion,
    Conversation,
    Example,
    GenerationRequest,
    Group,
    Message,
    SamplingParams,
    Trajectory,
    Turn,
)

TYPES = ("float32", "bfloat16")
EXAMPLE = Example("", Conversation((Message("user", ""),)))


def silent(done, total):
    pass


def on_both(work):
    """`work` on the CPU and on the pretended GPU."""
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        with pretended_cuda() if device == "cuda" else contextlib.nullcontext():
            found.append(work(device))
    return found


def close(cpu, gpu, dtype="float32"):
    """Other kernels, the same numbers; rounded to bfloat16 on the way, nearly."""
    assert type(gpu) is torch.Tensor, "results come back to the CPU"
    if dtype == "float32":
        torch.testing.assert_close(gpu, cpu, atol=1e-4, rtol=0)
    assert (gpu - cpu).abs().mean() < 0.05


def sampled_batch():
    batch = siblings_batch()
    return batch.with_(
        rewards=torch.arange(len(batch)) / 4.0,
        finished=torch.arange(len(batch)) % 3 > 0,
    )


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("lora_rank", [0, 4])
@pytest.mark.parametrize("kind", [PPO, GRPO])
def test_a_step_of_reinforcement_learning(tiny_model_directory, kind, lora_rank, dtype):
    def step(device):
        def load(**options):
            return load_policy(tiny_model_directory, placement=place(device, dtype), **options)

        heads = ("value",) if kind is PPO else ()
        model = load(heads=heads, lora_rank=lora_rank)
        trainer = LocalTrainer(model, batch_tokens=20)
        reference = FrozenPolicy(model if lora_rank else load(), batch_tokens=20, adapter_off=lora_rank > 0)
        algorithm = kind(kl_coef=0.1)
        batch = sampled_batch()
        batch = batch.with_(sampler_logprobs=trainer.evaluate(batch).logprobs)
        prepared, _ = algorithm.prepare(batch, trainer, reference)
        for _ in range(3):
            for part in prepared.minibatches(2, seed=0):
                trainer.forward_backward(part, algorithm.loss)
                trainer.optim_step(1e-3)
        assert isinstance(model.vocabulary_VD, OnCuda) == (device == "cuda")
        return trainer.evaluate(batch)

    cpu, gpu = on_both(step)
    for name in ("logprobs", "entropy", *(("values",) if kind is PPO else ())):
        close(getattr(cpu, name), getattr(gpu, name), dtype)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_run_is_saved_and_resumed(tiny_model_directory, tmp_path, dtype):
    def loss(part, output):
        return Loss(*nll_loss(output.logprobs, part.loss_mask))

    def run(device):
        trainers = [
            LocalTrainer(load_policy(tiny_model_directory, placement=place(device, dtype)), batch_tokens=20)
            for _ in "ab"
        ]
        first, second = trainers
        first.forward_backward(siblings_batch(), loss)
        first.optim_step(1e-3)
        first.save(tmp_path / device)
        second.load(tmp_path / device)
        for trainer in trainers:
            trainer.forward_backward(siblings_batch(seed=1), loss)
            trainer.optim_step(1e-3)
        ends = [trainer.evaluate(siblings_batch()).logprobs for trainer in trainers]
        assert torch.equal(*ends)
        return ends[1]

    close(*on_both(run), dtype)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_reward_model(tiny_model_directory, tmp_path, dtype):
    answers = tuple(tuple(tokens(5, seed=1) + tokens(n, seed=n)) for n in (3, 6, 2))
    ranked = [Ranked(5, answers, (Verdict(0, 1), Verdict(2, 1, tie=True), Verdict(2, 0, margin=0.5)))]
    trajectories = [
        Trajectory("", (Turn(a[:5], Completion(a[5:], (0.0,) * (len(a) - 5), "stop", 0, "")),), "completed")
        for a in answers
    ]

    def train(device):
        model = load_policy(tiny_model_directory, heads=("reward",), placement=place(device, dtype))
        cfg = RewardConfig(epochs=3, learning_rate=1e-3)
        freeze_below(model, 0)
        train_reward_model(
            LocalTrainer(model, batch_tokens=100), ranked, cfg, RunDirectory(tmp_path / device, 0), silent
        )
        (rewards,) = score(model, ranked, silent)
        standardise(model, torch.tensor(rewards)[:, None])
        directory = tmp_path / "model"
        if device == "cpu":  # transformers tells tensors apart by their addresses, which pretended ones do not have
            save_reward_model(model, directory, tokenizer_from=tiny_model_directory, canaries=answers)
        grader = RewardModelGrader(load_reward_model(directory, placement=place(device, dtype)))
        scores = asyncio.run(grader.grade(Group(EXAMPLE, tuple(trajectories))))
        return torch.tensor([s.value for s in scores])

    cpu, gpu = on_both(train)
    close(cpu, gpu, dtype)
    assert cpu.std() > 0.5, "standardised, so that they are not all one number"


@pytest.mark.parametrize("dtype", TYPES)
def test_sampling(tiny_model_directory, dtype):
    """More rows than fit at once, siblings and strangers, every way to choose a token."""
    ways = [
        SamplingParams(9),
        SamplingParams(4, temperature=0.7),
        SamplingParams(6, temperature=0.0),
        SamplingParams(5, top_p=0.9, top_k=20),
    ]
    prompts = [tuple(tokens(n, seed=n)) for n in (4, 4, 11, 30, 2)]
    requests = [GenerationRequest(p, way, seed=7 * i + j) for i, p in enumerate(prompts) for j, way in enumerate(ways)]

    def sample(device):
        model = load_policy(tiny_model_directory, placement=place(device, dtype))
        engine = LocalEngine(model, stop_ids=(3,), decode=str, max_batch=6)
        asyncio.run(engine.load_weights(model.state_dict(), version=1))
        return engine.sample(requests)

    cpu, gpu = on_both(sample)
    # A logprob that is rounded otherwise chooses another token now and then, and with it another future.
    same = [(a, b) for a, b in zip(cpu, gpu, strict=True) if a.token_ids == b.token_ids]
    assert len(same) == len(requests) if dtype == "float32" else len(same) > len(requests) / 2
    for a, b in same:
        close(torch.tensor(a.logprobs), torch.tensor(b.logprobs), dtype)


def test_pretraining_and_its_evaluation():
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {"model_type": "llama", "num_key_value_heads": 2, "max_position_embeddings": 16, **shape}
    ids = torch.tensor([0, *tokens(20, seed=0), 0, *tokens(7, seed=1), 0], dtype=torch.int32)
    stream = TokenStream(ids, [0, 21, 29], [20, 7])

    def work(device):
        model = fresh_policy(config, vocab_size=50, eos_id=0, placement=place(device, "float32"))
        batch = stream.batch([span for spans in stream.document_spans(16) for span in spans])
        trainer = LocalTrainer(model, batch_tokens=16)
        trainer.forward_backward(batch, lambda part, output: Loss(*nll_loss(output.logprobs, part.loss_mask)))
        trainer.optim_step(1e-3)
        said = read_next_tokens(model, stream, silent)
        return torch.tensor(said.nats), torch.tensor(said.confidence).sum((0, 1)), torch.tensor(said.probability).sum(0)

    on_cpu, on_gpu = on_both(work)
    for cpu, gpu in zip(on_cpu, on_gpu, strict=True):
        close(cpu, gpu)
    nats_a_token = on_cpu[0] / torch.tensor([21, 8])
    assert (nats_a_token - torch.tensor(50.0).log()).abs().max() < 0.2, "a fresh model knows nothing of either document"


def test_a_tensor_left_on_the_cpu_is_found():
    with pretended_cuda():
        there = torch.ones(3, device="cuda")
        assert there.device.type == "cuda"
        assert torch.equal((there + 1).cpu(), torch.tensor([2.0, 2.0, 2.0]))
        for mistake in (
            lambda: there + torch.ones(3),
            lambda: there[torch.tensor([0])],
            lambda: there.mul_(torch.ones(3)),
        ):
            with pytest.raises(AssertionError, match="mixes cuda"):
                mistake()


def test_the_recipe_chooses_where_and_in_which_type():
    assert place("auto", "auto") == (torch.device("cpu"), torch.float32)
    assert place("cpu", "bfloat16") == (torch.device("cpu"), torch.bfloat16)
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        place("cuda", "auto")
    with pretended_cuda():
        assert place("auto", "auto") == (torch.device("cuda"), torch.bfloat16)
        assert place("auto", "float32").dtype == torch.float32
        assert place("cpu", "auto") == (torch.device("cpu"), torch.float32)


def test_memory_on_a_gpu_is_that_of_the_work(monkeypatch):
    monkeypatch.setitem(SIZE, "cpu", 16)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 10_000)
    assert Machine("cpu").gpu_bytes() == 10_000 - 2 * 4 * 16 * 16


def test_collate_stays_on_the_cpu_and_a_copy_moves():
    batch = collate([[1, 2]], [[False, True]])
    with pretended_cuda():
        moved = batch.to(torch.device("cuda"))
        assert moved.input_ids.device.type == moved.loss_mask.device.type == "cuda"
        assert batch.input_ids.device.type == "cpu"
