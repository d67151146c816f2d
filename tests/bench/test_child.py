"""Every workload of ours on a byte-level model, with its counts worked out again from what it says it did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from postgrad.bench import child, machine
from postgrad.bench.flops import ModelShape
from postgrad.bench.workloads import Side, Workload, ragged_lengths, workloads

ROWS = [
    [{"role": "user", "content": "why " * (1 + i % 3)}, {"role": "assistant", "content": "so " * (1 + 5 * i)}]
    for i in range(16)
]
# hidden 32, two layers: queries and output 32 x 32, keys and values 32 x 16, three of 32 x 64; 258 words.
LINEAR = 2 * (2 * 1024 + 2 * 512 + 3 * 2048)
VOCABULARY = 258 * 32
ADAPTER_16 = 2 * 16 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))
SPANS = ("sample_s", "score_s", "train_s", "publish_s")


@pytest.fixture(autouse=True)
def small_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own peak is of no interest here, and takes seconds."""
    monkeypatch.setitem(machine.SIZE, "cpu", 32)


def job(tiny_model_directory: Path, workload: Workload, side: Side, **changes: Any) -> dict[str, Any]:
    fixed = {"kind": workload.kind, "model": str(tiny_model_directory), "threads": 1, "device": "cpu", "seed": 0}
    sizes = {"warmup": workload.warmup, "steps": 1}
    return {**workload.job, **side.options, **fixed, **sizes, **changes}


def ours(name: str) -> list[tuple[Workload, Side]]:
    (workload,) = (w for w in workloads(ROWS) if w.name == name)
    return [(workload, side) for side in workload.sides if not side.driver]


@pytest.mark.parametrize("name", ["rl-full", "rl-lora", "rl-long-full"])
def test_reinforcement_learning(name: str, tiny_model_directory: Path) -> None:
    for workload, side in ours(name):
        prompts = [prompt[:400] for prompt in workload.job["prompts"]]
        result = child.run(job(tiny_model_directory, workload, side, max_tokens=5, prompts=prompts))
        (step,) = result["steps"]
        assert sum(step[span] for span in SPANS) == pytest.approx(step["seconds"])
        assert all(step[span] > 0 for span in SPANS)
        assert 32 <= step["tokens"] <= 32 * 5
        assert step["prompt_tokens"] > (1600 if "long" in name else 100)
        shape = ModelShape(LINEAR, ADAPTER_16 if "lora" in name else 0, VOCABULARY, 2, 32, 16)
        assert step["train_flops"] == shape.train(step["prompt_tokens"] + step["tokens"], step["tokens"])
        assert step["attention_flops"] > 0
        assert 0 < step["logprob_diff_max"] < 1e-5
        assert step["matrix_peak"] > 0


def test_every_step_asks_other_questions_and_the_long_ones_come_after_the_warm_up() -> None:
    short, long = (next(w for w in workloads(ROWS) if w.name == name) for name in ("rl-full", "rl-long-full"))
    assert len(short.job["prompts"]) == 4 * (short.warmup + short.steps)
    assert short.job["prompts"][:4] != short.job["prompts"][4:8]
    assert long.job["prompts"][:4] == short.job["prompts"][:4]
    assert [len(p.split()) for p in long.job["prompts"][4:]] == [
        3 + 490 + len(q.split()) for q in short.job["prompts"][4:8]
    ]


def test_supervised_learning_takes_the_rows_in_order_and_cuts_them(tiny_model_directory: Path) -> None:
    ((workload, side),) = ours("sft")
    result = child.run(job(tiny_model_directory, workload, side, max_length=60))
    (step,) = result["steps"]
    # The second batch of eight: `<start>user\n`, words, `<end>`, and so on; a template token is one token.
    sizes = [6 + 4 * (1 + i % 3) + 1 + 11 + 3 * (1 + 5 * i) + 1 for i in range(8, 16)]
    assert all(size > 60 for size in sizes)
    assert step["tokens"] == 8 * 60
    assert step["train_flops"] == 6 * (LINEAR * 8 * 60 + VOCABULARY * 8 * 59)
    assert step["attention_flops"] == 3 * 4 * 2 * 32 * 8 * (60 * 61 // 2)


@pytest.mark.parametrize("name", ["decode-8", "decode-ragged"])
def test_decoding_goes_on_to_the_length_that_was_asked_for(name: str, tiny_model_directory: Path) -> None:
    ((workload, side),) = ours(name)
    result = child.run(job(tiny_model_directory, workload, side))
    (step,) = result["steps"]
    prompt, lengths = result["prompt_tokens"], workload.job["lengths"]
    assert step["tokens"] == sum(lengths)
    assert step["forward_flops"] == 2 * (LINEAR * (prompt + sum(lengths)) + VOCABULARY * sum(lengths))
    cached = prompt * max(lengths) + sum(n * (n - 1) // 2 for n in lengths)
    assert step["bytes"] == 4 * ((LINEAR + VOCABULARY) * max(lengths) + 2 * 2 * 16 * cached)


def test_ragged_lengths_are_spread_evenly_and_in_no_order() -> None:
    lengths = ragged_lengths(64, 8, 128)
    assert sorted(lengths)[0] == 8
    assert sorted(lengths)[-1] == 128
    assert len(set(lengths)) == 64
    assert sum(lengths) == pytest.approx(64 * 68, rel=0.01)
    # A quarter of the requests in file order is as long as any other.
    quarters = [sum(lengths[i : i + 16]) for i in range(0, 64, 16)]
    assert max(quarters) < 1.2 * min(quarters)
