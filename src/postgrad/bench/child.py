"""Our side of a workload, in a process of its own: `python -m postgrad.bench.child JOB RESULT`, both JSON files."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from postgrad import __version__
from postgrad.bench.flops import Bundle, ModelShape, model_shape
from postgrad.bench.machine import Machine
from postgrad.data.batch import Batch, collate, make_batch
from postgrad.engine.local import LocalEngine
from postgrad.methods.grpo import GRPO
from postgrad.methods.ppo import PPO
from postgrad.models.load import load_policy
from postgrad.ops.losses import nll_loss
from postgrad.protocols import Algorithm, Loss, PolicyOutput
from postgrad.rollout import grade_groups, rollout_groups
from postgrad.run import atomic_write
from postgrad.text.template import Renderer
from postgrad.text.tokenizer import load_tokenizer
from postgrad.trainer.local import FrozenPolicy, LocalTrainer
from postgrad.types import Conversation, Example, GenerationRequest, Group, Message, SamplingParams, Score

Json = dict[str, Any]
Step = Callable[[int], Json]
"""Does step number n, warm-up included, and says what it took."""


class LengthGrader:
    """The reward of the timed step: the nearer an answer's length to the target, the better."""

    name = "length"

    def __init__(self, target_characters: int) -> None:
        self._target = target_characters

    async def grade(self, group: Group) -> Sequence[Score]:
        texts = [t.turns[-1].completion.text for t in group.trajectories]
        return [Score(self.name, -abs(len(text) - self._target) / self._target) for text in texts]


def run(job: Json) -> Json:
    """Warm up, then measure the machine's peak before every timed step and after the last."""
    torch.set_num_threads(job["threads"])
    torch.manual_seed(job["seed"])
    machine = Machine(job["device"])
    prepare = {"rl": _rl, "sft": _sft, "decode": _decode}[job["kind"]]
    step, facts = prepare(job, machine)
    for n in range(job["warmup"]):
        step(n)
    steps, peaks = [], [machine.matrix_peak()]
    for n in range(job["warmup"], job["warmup"] + job["steps"]):
        steps.append(step(n))
        peaks.append(machine.matrix_peak())
    facts["gpu_bytes"] = machine.gpu_bytes()
    if job["device"] == "cuda":
        facts["bandwidth"] = machine.bandwidth()
    for measured, (before, after) in zip(steps, pairwise(peaks), strict=True):
        measured["matrix_peak"] = (before + after) / 2
    return {"steps": steps, "versions": _versions(), **facts}


def _rl(job: Json, machine: Machine) -> tuple[Step, Json]:
    """Sample, score (grade and prepare), train once on every group, publish."""
    directory = Path(job["model"])
    renderer = Renderer(load_tokenizer(directory))
    ppo = job["algorithm"] == "ppo"
    lora = job["lora_rank"] > 0
    model = load_policy(
        directory,
        heads=("value",) if ppo else (),
        lora_rank=job["lora_rank"],
        gradient_checkpointing=job["gradient_checkpointing"],
        placement=machine.placement,
    )
    trainer = LocalTrainer(model, batch_tokens=job["batch_tokens"])
    other = model if lora else load_policy(directory, placement=machine.placement)
    reference = FrozenPolicy(other, batch_tokens=job["batch_tokens"], adapter_off=lora)
    algorithm: Algorithm = PPO(kl_coef=job["kl_coef"]) if ppo else GRPO(kl_coef=job["kl_coef"])
    engine = LocalEngine(model, stop_ids=renderer.stop_ids, decode=renderer.decode)
    grader = LengthGrader(job["target_characters"])
    params = SamplingParams(max_tokens=job["max_tokens"])
    shape = model_shape(model)
    num = job["prompts_per_step"]

    def step(n: int) -> Json:
        questions = job["prompts"][n * num : (n + 1) * num]
        examples = [Example(str(i), _ask(question)) for i, question in enumerate(questions)]
        clock = [machine.now()]
        groups = asyncio.run(
            rollout_groups(
                examples, engine, renderer, params, group_size=job["group_size"], seed=1000 * job["seed"] + n
            )
        )
        clock.append(machine.now())
        # Groups without a signal are trained too: the peer trains on them, and a smaller batch is no faster step.
        batch = make_batch(asyncio.run(grade_groups(groups, [grader])))
        prepared, metrics = algorithm.prepare(batch, trainer, reference)
        clock.append(machine.now())
        trainer.forward_backward(prepared, algorithm.loss)
        trainer.optim_step(job["learning_rate"])
        clock.append(machine.now())
        asyncio.run(engine.load_weights(trainer.weights(), version=trainer.version))
        clock.append(machine.now())
        spans = [later - earlier for earlier, later in pairwise(clock)]
        return {
            "seconds": clock[-1] - clock[0],
            **dict(zip(("sample_s", "score_s", "train_s", "publish_s"), spans, strict=True)),
            "prompt_tokens": sum(len(g.trajectories[0].turns[0].prompt_ids) for g in groups),
            "logprob_diff_max": metrics["sampler/logprob_diff_max"],
            **_train_counts(shape, batch),
        }

    return step, {}


def _sft(job: Json, machine: Machine) -> tuple[Step, Json]:
    """The rows in file order, cut to the longest length; every token but the first is trained, as TRL does it."""
    directory = Path(job["model"])
    renderer = Renderer(load_tokenizer(directory))
    trainer = LocalTrainer(load_policy(directory, placement=machine.placement), batch_tokens=job["batch_tokens"])
    shape = model_shape(trainer.model)
    size = job["batch_size"]

    def loss(batch: Batch, output: PolicyOutput) -> Loss:
        return Loss(*nll_loss(output.logprobs, batch.loss_mask))

    def step(n: int) -> Json:
        rows = [job["rows"][i % len(job["rows"])] for i in range(n * size, (n + 1) * size)]
        rendered = [renderer.render_example(_demonstration(row))[0][: job["max_length"]] for row in rows]
        began = machine.now()
        batch = collate(rendered, [[True] * len(ids) for ids in rendered])
        trainer.forward_backward(batch, loss)
        trainer.optim_step(job["learning_rate"])
        seconds = machine.now() - began
        return {
            "seconds": seconds,
            "train_s": seconds,
            **_train_counts(shape, batch),
            "tokens": int(batch.lengths.sum()),
        }

    return step, {}


def _decode(job: Json, machine: Machine) -> tuple[Step, Json]:
    """Every request to its full length: no token stops it."""
    directory = Path(job["model"])
    renderer = Renderer(load_tokenizer(directory))
    # As it is served.
    model = load_policy(directory, placement=machine.placement).requires_grad_(False)
    engine = LocalEngine(model, stop_ids=(), decode=renderer.decode)
    prompt = renderer.render_prompt(_ask(job["prompt"]))
    shape = model_shape(model)

    def step(n: int) -> Json:
        lengths = job["lengths"] if n >= job["warmup"] else [min(8, m) for m in job["lengths"]]
        requests = [
            GenerationRequest(prompt, SamplingParams(max_tokens=m), seed=1000 * n + i) for i, m in enumerate(lengths)
        ]
        began = machine.now()
        completions = engine.sample(requests)
        seconds = machine.now() - began
        tokens = sum(len(c.token_ids) for c in completions)
        assert tokens == sum(lengths), "a request stopped before its length"
        return {
            "seconds": seconds,
            "tokens": tokens,
            "forward_flops": shape.forward(len(prompt) + tokens, tokens),
            "bytes": shape.decode_bytes(len(prompt), lengths, width=machine.placement.dtype.itemsize),
        }

    return step, {"prompt_tokens": len(prompt)}


def _train_counts(shape: ModelShape, batch: Batch) -> Json:
    """What one pass over a batch needs; siblings share what lies before the first trained token."""
    positions = batch.num_loss_tokens
    found = bundles(batch)
    tokens = sum(bundle.tokens for bundle in found)
    return {
        "tokens": positions,
        "train_flops": shape.train(tokens, positions),
        "attention_flops": shape.attention(found, backward=True),
    }


def bundles(batch: Batch) -> list[Bundle]:
    """The batch's groups, or its rows one by one where there are none."""
    prompts = batch.loss_mask.int().argmax(1).tolist()
    lengths = batch.lengths.tolist()
    if batch.group_ids is None:
        return [Bundle(0, (length,)) for length in lengths]
    owns: dict[int, list[int]] = {}
    for i, group in enumerate(batch.group_ids.tolist()):
        owns.setdefault(group, []).append(i)
    return [Bundle(prompts[rows[0]], tuple(lengths[i] - prompts[i] for i in rows)) for rows in owns.values()]


def _ask(question: str) -> Conversation:
    return Conversation((Message("user", question),))


def _demonstration(row: Sequence[Json]) -> Example:
    return Example("", Conversation(tuple(Message(m["role"], m["content"]) for m in row)))


def _versions() -> dict[str, str]:
    return {"postgrad": __version__, **{name: version(name) for name in ("torch", "transformers")}}


def main(job: str, result: str) -> None:
    atomic_write(Path(result), json.dumps(run(json.loads(Path(job).read_text(encoding="utf-8")))))


if __name__ == "__main__":
    main(*sys.argv[1:])
