"""The command line as a process: interrupted, out of disk, and with a person at its keyboard."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest
from sqlalchemy import create_engine, text
from tiny_round import ENVIRONMENT, NO_BAR, call, fork, write_recipe

from postgrad.db.engine import sqlite_url
from postgrad.feedback.store import LabelStore
from postgrad.rounds.manifest import find_round

QUICK = ("rl.steps=1", "arena.resamples=10")
"""Keys that make what comes after the point of a test short."""


def with_settings(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def test_ctrl_c_says_so_and_the_same_command_goes_on(
    tmp_path: Path, tiny_model_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, tiny_model_directory)
    command = ("run", recipe, "--workspace", tmp_path / "w", "--set", "rl.steps=500")
    running = fork(tmp_path / "io", *command)
    while "6/8 rl" not in running.out:
        assert running.process.is_alive()
        time.sleep(0.01)
    assert running.process.pid is not None
    os.kill(running.process.pid, signal.SIGINT)
    assert (running.wait(), running.err) == (130, "interrupted; the same command goes on from here\n")
    manifest = find_round(tmp_path / "w", "1")
    assert [s.status for s in manifest.record.stages] == ["done"] * 5 + ["running"]
    code, out, _ = call(capsys, "rounds", "--workspace", tmp_path / "w")
    assert code == 0
    assert [cell.strip() for cell in out.splitlines()[3].split("│")[1:4]] == ["0001-tiny", "running", "rl"]


@contextlib.contextmanager
def small_disk(directory: Path, kilobytes: int) -> Iterator[Callable[[int], None]]:
    """A file system of so many kilobytes; gives a function that changes its size."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(directory)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root with its full powers can mount a small disk")
    try:
        yield lambda size: subprocess.run(["mount", "-o", f"remount,size={size}k", str(directory)], check=True)
    finally:
        subprocess.run(["umount", str(directory)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_wherever_it_fills_and_the_same_command_goes_on(
    tmp_path: Path, tiny_model_directory: Path
) -> None:
    recipe = write_recipe(tmp_path, tiny_model_directory)
    disk = tmp_path / "disk"
    command = ("run", recipe, "--workspace", disk / "w", *with_settings(*QUICK))
    with small_disk(disk, 16) as resize:
        for kilobytes in (16, 340, 700):
            resize(kilobytes)
            process = fork(tmp_path / "io", *command)
            assert process.wait() == 2, process.err
            assert re.fullmatch(r"error: [^\n]*disk( is)? full[^\n]*\n", process.err), process.err
        resize(20_000)
        process = fork(tmp_path / "io", *command)
        assert (process.wait(), process.err) == (0, "")
        assert find_round(disk / "w", "latest").record.id == "0001-tiny"


@pytest.mark.slow
@pytest.mark.parametrize("max_file_bytes", [2_000, 110_000])
def test_a_file_that_may_not_grow_is_one_sentence_too(
    tmp_path: Path, tiny_model_directory: Path, max_file_bytes: int
) -> None:
    recipe = write_recipe(tmp_path, tiny_model_directory)
    command = ("run", recipe, "--workspace", tmp_path / "w", *with_settings(*QUICK))
    process = fork(tmp_path / "io", *command, max_file_bytes=max_file_bytes)
    assert process.wait() == 2, process.err
    assert re.fullmatch(r"error: [^\n]+\n", process.err), process.err
    again = fork(tmp_path / "io", *command)
    assert (again.wait(), again.err) == (0, "")


ME = (
    "sft.num_examples=8", "sft.examples_per_step=4", "reward.train_layers=0", f"reward.bar={NO_BAR}", "rl.steps=1",
    "rl.prompts_per_step=2", "rl.group_size=2", "rl.max_tokens=12", "arena.num_prompts=4", "arena.num_raters=2",
    "arena.resamples=10",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # pexpect forks; the child execs at once
def test_a_person_answers_twenty_comparisons_quits_in_the_middle_comes_back_and_undoes(
    tmp_path: Path, tiny_model_directory: Path
) -> None:
    settings = with_settings(f"model.name={json.dumps(str(tiny_model_directory))}", *ME)
    command = ["-m", "postgrad", "quickstart", "--me", "--workspace", str(tmp_path), *settings]

    def sit_down() -> pexpect.spawn:
        return pexpect.spawn(
            sys.executable, command, env=ENVIRONMENT, dimensions=(24, 80), timeout=120, encoding="utf-8"
        )

    def press(screen: pexpect.spawn, key: str, number: int) -> None:
        screen.expect(f"Question {number} of 20")
        screen.expect("quit > ")
        screen.send(key)

    first = sit_down()
    for number, key in enumerate("abtaba", 1):
        press(first, key, number)
    press(first, "q", 7)
    first.expect("6 of 20 saved; the same command continues here")
    first.expect("interrupted; the same command goes on from here")
    first.expect(pexpect.EOF)
    first.close()
    assert first.exitstatus == 130

    second = sit_down()
    press(second, "u", 7)
    for number in range(6, 21):
        press(second, "b", number)
    second.expect("20 of 20 saved")
    second.expect("8/8")
    second.expect("verdict: ")
    second.expect(pexpect.EOF)
    second.close()
    assert second.exitstatus == 0

    manifest = find_round(tmp_path, "latest")
    with LabelStore(sqlite_url(tmp_path / "postgrad.db")) as store:
        mine = list(store.preferences(purpose="train", round_id=manifest.record.id))
    assert [(j.rater_kind, j.preference.rater_id) for j in mine] == [("human", "me")] * 20
    sides = [("AB" if j.order == (0, 1) else "BA")[j.preference.tiers[0][0]] for j in mine]
    pressed = ["t" if len(j.preference.tiers) == 1 else side.lower() for j, side in zip(mine, sides, strict=True)]
    assert "".join(pressed) == "abtab" + "b" * 15
    engine = create_engine(sqlite_url(tmp_path / "postgrad.db"))
    with engine.connect() as connection:
        undone = connection.execute(text("select count(*) from labels where undone_at is not null")).scalar()
    engine.dispose()
    assert undone == 1
