"""Tables of a recorded report, every number worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from postgrad.bench.compare import Record, Report
from postgrad.bench.tables import Ratio, heading, markdown, ratios, remarks, tables

MACHINE = {
    "processor": "Abacus", "cores": 4, "threads": 2, "device": "cpu", "memory_bytes": 8_000_000_000, "system": "Linux",
}  # fmt: skip


def record(workload: str, side: str, repeat: int, *steps: dict[str, Any], **more: Any) -> Record:
    return Record(workload, side, repeat, {"steps": list(steps), "versions": {"torch": "2.0"}, **more})


def rl(seconds: float, tokens: int, **more: float) -> dict[str, Any]:
    return {"seconds": seconds, "tokens": tokens, **more}


COUNTS = {"sample_s": 1.0, "score_s": 0.5, "train_s": 2.0, "publish_s": 0.5, "train_flops": 120e9, "matrix_peak": 100e9}
REPORT = Report(
    MACHINE,
    "/models/tiny/",
    (
        record("rl-full", "postgrad grpo", 0, rl(4, 40, **COUNTS, attention_flops=20e9, logprob_diff_max=2e-6),
               rl(6, 60, **{**COUNTS, "train_s": 1.0}, attention_flops=20e9, logprob_diff_max=3e-6),
               resident_bytes=2e9),
        record("rl-full", "trl grpo", 0, rl(15, 30), rl(15, 30), resident_bytes=3e9),
        record("rl-full", "postgrad grpo", 1, rl(5, 100, **COUNTS, attention_flops=20e9, logprob_diff_max=1e-6),
               resident_bytes=2e9),
        record("rl-full", "trl grpo", 1, rl(20, 100), resident_bytes=5e9),
        record("decode-8", "postgrad", 0, {"seconds": 2, "tokens": 512, "forward_flops": 50e9, "matrix_peak": 100e9,
               "bytes": 3e9}, resident_bytes=1e9, prompt_tokens=42),
        record("decode-8", "vllm", 0, {"seconds": 4, "tokens": 512}, resident_bytes=None, prompt_tokens=42),
    ),
)  # fmt: skip


def test_ratios_pair_neighbours_and_say_how_many_times_better() -> None:
    found = {(r.quantity): r for r in ratios(REPORT) if r.workload == "rl-full"}
    # A step takes 5 s and 15 s in the first pair, 5 s and 20 s in the second.
    assert found["time a step"] == Ratio("rl-full", "postgrad grpo", "trl grpo", "time a step", (3.0, 4.0))
    # 10 and 2 tokens a second; 20 and 5.
    assert found["tokens/s"].values == (5.0, 4.0)
    assert found["memory"].values == (1.5, 2.5)
    assert [r.values for r in ratios(REPORT) if r.workload == "decode-8"] == [(2.0,)]


def test_a_repetition_without_its_neighbour_is_left_out() -> None:
    cut = Report(MACHINE, "m", REPORT.records[:3])
    assert [r.values for r in ratios(cut)] == [(3.0,), (5.0,), (1.5,)]


def test_time_rates_and_shares() -> None:
    seconds, rates, decode, compared = tables(REPORT, spread=False)
    assert seconds.headers == ("work", "side", "step", "sample", "score", "train", "publish")
    # Steps of 4 and 6 s, then one of 5 s; 2 and 1 s of training, then 2 s.
    assert seconds.rows[0] == ("rl-full", "postgrad grpo", "5.00", "1.00", "0.50", "1.75", "0.50")
    assert seconds.rows[1] == ("rl-full", "trl grpo", "17.5", "-", "-", "-", "-")
    # 120 GFLOP in 2 s and in 1 s at a peak of 100: 60% and 120%, their median 90%; then 60%. 140 GFLOP: 105% and 70%.
    assert rates.headers[2:] == ("tokens", "tokens/s", "train, %", "+ attention, %", "GB", "logprob diff.")
    assert rates.rows[0][2:] == ("75.0", "15.0", "75.0", "87.5", "2.00", "2.0e-06")
    assert rates.rows[1][2:] == ("65.0", "3.50", "-", "-", "4.00", "-")
    assert decode.headers == ("work", "side", "tokens/s", "of peak, %", "GB")
    assert decode.rows == (("decode-8", "postgrad", "256", "25.0", "1.00"), ("decode-8", "vllm", "128", "-", "-"))
    assert compared.rows[0] == ("rl-full", "postgrad grpo", "trl grpo", "time a step", "3.00", "3.50", "4.00")


def test_on_a_gpu_bandwidth_is_shared_out_too_and_memory_is_the_gpus() -> None:
    result = dict(REPORT.records[4].result) | {"bandwidth": 5e9, "gpu_bytes": 7e9}
    report = Report({**MACHINE, "device": "cuda"}, "m", (Record("decode-8", "postgrad", 0, result),))
    (decode,) = tables(report, spread=False)
    assert decode.headers == ("work", "side", "tokens/s", "of peak, %", "of bandwidth, %", "GB")
    assert decode.rows == (("decode-8", "postgrad", "256", "25.0", "30.0", "7.00"),)
    assert "bfloat16 on CUDA" in heading(report)


def test_the_page() -> None:
    page = markdown(REPORT)
    assert page.startswith(
        "tiny, float32 on the CPU; Abacus, 2 of 4 cores, 8 GB; processes a side: 2, in turn. Matrix peak 100 GFLOP/s. "
        "torch 2.0.\n"
    )
    assert "| rl-full | postgrad grpo | 5.00 | 1.00 | 0.50 | 1.75 (1.50–2.00) | 0.50 |" in page
    assert "| work | side | against | quantity | min | median | max |\n| --- | --- | --- | --- | ---: | ---: |" in page
    assert page.count("\n- ") == len(remarks(REPORT)) == 2


def test_what_is_not_comparable_is_said_only_of_who_took_part() -> None:
    alone = Report(MACHINE, "m", (record("rl-full", "postgrad ppo", 0, rl(1, 1), resident_bytes=1e9),))
    assert remarks(alone) == []
    said = " ".join(remarks(REPORT))
    assert "vLLM" in said
    assert "transformers' generate" not in said
    other = record("decode-8", "vllm", 0, {"seconds": 4, "tokens": 512}, resident_bytes=1e9, prompt_tokens=40)
    said = " ".join(remarks(Report(MACHINE, "m", (*REPORT.records[:5], other))))
    assert "The prompt of decode-8 was not the same length everywhere: postgrad 42, vllm 40 tokens." in said


@pytest.mark.parametrize("workload", ["rl-full", "decode-8"])
def test_a_report_of_one_side_has_no_ratios(workload: str) -> None:
    alone = Report(MACHINE, "m", tuple(r for r in REPORT.records if r.workload == workload and "postgrad" in r.side))
    assert ratios(alone) == []
    assert not any(table.title.startswith("Ratios") for table in tables(alone, spread=True))
