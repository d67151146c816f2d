import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from postgrad.errors import DataError, StoreError
from postgrad.rounds.context import write_lines
from postgrad.run import (
    METRIC_KEYS,
    RunDirectory,
    WorkspaceLock,
    atomic_write,
    read_json_lines,
    read_metrics,
    sha256_file,
    sha256_tree,
    tail_metrics,
)
from postgrad.types import Completion, Conversation, Example, Group, Message, Score, Trajectory, Turn


def group(name: str) -> Group:
    completion = Completion((5, 7), (-0.5, -0.25), "stop", 3, "Ja \u2028 <b>")
    scores = (Score("reward_model", 1.5, weight=2.0), Score("format", None, explanation="abstained"))
    prompt = Conversation((Message("system", "Be brief."), Message("user", "What is water?")))
    first = Trajectory(f"{name}-0", (Turn((1, 2, 3), completion),), "completed", scores=scores)
    second = Trajectory(f"{name}-1", (), "errored", error="EngineError: gone")
    return Group(Example(name, prompt), (first, second))


def test_metrics_come_back_in_the_order_they_were_written(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "sft")
    run.write_metrics(1, {"loss/nll": 2.5})
    run.write_metrics(2, {"loss/nll": 2.0, "optim/grad_norm": 1})
    assert run.read_metrics() == [{"step": 1, "loss/nll": 2.5}, {"step": 2, "loss/nll": 2.0, "optim/grad_norm": 1.0}]
    assert read_metrics(tmp_path / "absent.jsonl") == []


def test_a_metric_that_is_not_finite_is_written_as_null_and_read_as_absent(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.write_metrics(1, {"value/explained_variance": float("nan"), "reward/mean": 0.5})
    assert json.loads(run.metrics_path.read_text()) == {
        "step": 1, "value/explained_variance": None, "reward/mean": 0.5,
    }  # fmt: skip
    assert run.read_metrics() == [{"step": 1, "reward/mean": 0.5}]


def test_a_metric_key_outside_the_table_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with pytest.raises(AssertionError, match="'loss/nul'"):
        run.write_metrics(1, {"loss/nul": 1.0})
    assert not run.metrics_path.exists()


def test_every_metric_key_is_area_slash_quantity_with_a_meaning_and_a_range() -> None:
    for key, metric in METRIC_KEYS.items():
        area, quantity = key.split("/")
        assert area.isidentifier(), key
        assert quantity.isidentifier(), key
        assert metric.meaning, key
        assert metric.low < metric.high, key
        assert area != "time" or quantity.endswith("_s"), key


def test_resuming_drops_repeated_steps_their_trajectories_and_a_torn_last_line(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for step in (1, 2, 3):
        run.write_metrics(step, {"reward/mean": float(step)})
        run.save_groups(step, [group("a")])
    with open(run.metrics_path, "a") as file:
        file.write('{"step": 4, "rewa')
    run.truncate_after(1)
    assert run.metrics_path.read_text() == '{"step": 1, "reward/mean": 1.0}\n'
    assert [p.name for p in (tmp_path / "trajectories").iterdir()] == ["step-0001.jsonl"]
    run.write_metrics(2, {"reward/mean": 9.0})
    assert [row["reward/mean"] for row in run.read_metrics()] == [1.0, 9.0]


@pytest.mark.parametrize("torn", ['{"step": 2, "rewa', "x" * 10_000])
def test_a_line_torn_by_a_crash_is_not_read_and_the_next_write_replaces_it(tmp_path: Path, torn: str) -> None:
    run = RunDirectory(tmp_path)
    run.write_metrics(1, {"reward/mean": 1.0})
    with open(run.metrics_path, "a") as file:
        file.write(torn)
    assert run.read_metrics() == [{"step": 1, "reward/mean": 1.0}]
    run.write_metrics(2, {"reward/mean": 2.0})
    assert run.metrics_path.read_text() == '{"step": 1, "reward/mean": 1.0}\n{"step": 2, "reward/mean": 2.0}\n'


def test_a_malformed_line_in_the_middle_is_named(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.metrics_path.write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2 is not JSON"):
        run.read_metrics()


def test_saved_trajectories_hold_tokens_logprobs_scores_and_the_policy_version(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    path = run.save_groups(12, [group("a"), group("b")])
    assert path == tmp_path / "trajectories" / "step-0012.jsonl"
    rows = run.read_trajectories(12)
    assert [(row["group"], row["id"], row["status"]) for row in rows] == [
        (0, "a-0", "completed"), (0, "a-1", "errored"), (1, "b-0", "completed"), (1, "b-1", "errored"),
    ]  # fmt: skip
    assert rows[0]["prompt"] == "What is water?"
    assert rows[0]["messages"][0] == {"role": "system", "content": "Be brief."}
    assert rows[0]["reward"] == 3.0
    assert rows[0]["scores"][1] == {"grader": "format", "value": None, "weight": 1.0, "explanation": "abstained"}
    assert rows[0]["turns"] == [
        {
            "prompt_ids": [1, 2, 3], "token_ids": [5, 7], "logprobs": [-0.5, -0.25], "finish_reason": "stop",
            "policy_version": 3, "text": "Ja \u2028 <b>", "feedback": [],
        }
    ]  # fmt: skip
    assert rows[1]["error"] == "EngineError: gone"
    assert rows[1]["reward"] is None
    with pytest.raises(DataError, match="no trajectories were saved at step 13"):
        run.read_trajectories(13)


def test_seeds_are_the_same_everywhere_and_differ_by_root_step_and_salt(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, root_seed=1)
    assert run.seed(2, "rollout", 3) == 1825446298421261662
    others = [
        run.seed(2, "rollout", 3),
        run.seed(2, "rollout", "3"),
        run.seed(2, "rollout"),
        run.seed(3, "rollout", 3),
        RunDirectory(tmp_path, root_seed=2).seed(2, "rollout", 3),
    ]
    assert len(set(others)) == 5
    assert all(0 <= seed < 2**63 for seed in others)


def test_an_atomic_write_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    atomic_write(path, "erste\n")
    atomic_write(path, "zweite: ü\n")
    assert path.read_bytes() == "zweite: ü\n".encode()
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_a_full_disk_is_one_sentence_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    (tmp_path / f".a.json.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(StoreError, match=r"^disk full while writing .*a\.json; free space and run the same command"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_while_appending_metrics_is_the_same_sentence(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.metrics_path.symlink_to("/dev/full")
    with pytest.raises(StoreError, match=r"^disk full while writing .*metrics\.jsonl"):
        run.write_metrics(1, {"reward/mean": 1.0})


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*taken/a\.json: (File exists|Not a directory)"):
        atomic_write(tmp_path / "taken" / "a.json", "x")


def test_hashes_are_sha256_and_a_tree_notices_names_and_bytes_but_not_unfinished_writes(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b").write_bytes(b"abc")
    assert sha256_file(tmp_path / "sub" / "b") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    before = sha256_tree(tmp_path)
    assert before == "d0cee7390bbd33ae4b02c44cf063c1bc78e55ed6b0ccdd60b043d51d5a310e87"
    (tmp_path / "sub" / ".b.123.tmp").write_bytes(b"half")
    assert sha256_tree(tmp_path) == before
    (tmp_path / "sub" / "b").rename(tmp_path / "sub" / "c")
    assert sha256_tree(tmp_path) != before


def test_config_is_kept_as_readable_json(tmp_path: Path) -> None:
    RunDirectory(tmp_path).write_config({"seed": 3, "name": "ü"})
    assert (tmp_path / "config.json").read_text(encoding="utf-8") == '{\n  "seed": 3,\n  "name": "ü"\n}\n'


HOLDER = """
import sys, time
from pathlib import Path
from postgrad.run import WorkspaceLock
with WorkspaceLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_by_name_and_admitted_after_kill_9(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match=rf"is in use by process {holder.pid}; "), WorkspaceLock(tmp_path):
            raise AssertionError("two processes hold one workspace")
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with WorkspaceLock(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"
    with WorkspaceLock(tmp_path):
        pass


def test_metrics_are_followed_from_where_they_were_last_read(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert tail_metrics(run.metrics_path, 0) == ([], 0)
    run.write_metrics(1, {"reward/mean": 1.0})
    rows, end = tail_metrics(run.metrics_path, 0)
    assert (rows, end) == ([{"step": 1, "reward/mean": 1.0}], run.metrics_path.stat().st_size)
    with open(run.metrics_path, "a") as file:
        file.write('{"step": 2, "rewa')
    assert tail_metrics(run.metrics_path, end) == ([], end)
    run.write_metrics(2, {"reward/mean": float("nan")})
    assert tail_metrics(run.metrics_path, end)[0] == [{"step": 2}]


def test_resuming_drops_the_warnings_of_repeated_steps(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.read_warnings() == []
    for step in (3, 7):
        run.write_warning({"step": step, "message": "ü \u2028"})
    run.truncate_after(5)
    assert run.read_warnings() == [{"step": 3, "message": "ü \u2028"}]


def test_the_steps_whose_trajectories_were_saved_are_known(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.saved_steps() == []
    for step in (12, 3, 10_000):
        run.save_groups(step, [group("a")])
    assert run.saved_steps() == [3, 12, 10_000]


def test_a_line_ends_where_json_ends_it_whatever_an_answer_holds(tmp_path: Path) -> None:
    rows = [{"text": "one\u2028two\u0085three\u2029"}, {"text": "\r\n"}]
    write_lines(tmp_path / "rows.jsonl", rows)
    assert read_json_lines(tmp_path / "rows.jsonl") == rows
