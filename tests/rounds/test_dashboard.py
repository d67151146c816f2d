"""The view of a training stage: what it shows at which width, and that it leaves the terminal as it was."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from postgrad.rounds.dashboard import BLOCKS, as_line, healthy_range, metrics_table
from postgrad.rounds.summary import Bars
from postgrad.run import RunDirectory

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


def row(step: int, **values: float) -> dict[str, float]:
    metrics = {
        "reward/mean": 0.1 * step, "policy/kl_ref": 0.2 * step, "policy/entropy": 2.0, "policy/clip_frac": 0.1,
        "rollout/completion_tokens": 20.0, "rollout/truncated_frac": 0.4, "optim/grad_norm": 2.0,
        "sampler/logprob_diff_max": 1e-6, "policy/kl_old": 0.01, "time/sample_s": 3.0,
    }  # fmt: skip
    return {"step": step} | metrics | {key.replace("__", "/"): value for key, value in values.items()}


def console_of(width: int, height: int = 24) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=True, color_system="truecolor", width=width, height=height,
        legacy_windows=False, _environ={"TERM": "xterm"},
    )  # fmt: skip


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def plain(text: str) -> list[str]:
    """Lines as they are seen, without colours and cursor movements."""
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", text).split("\n")]


def lines_of(rows: list[dict[str, float]], width: int, *, most: int = 20, ascii_only: bool = False) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(metrics_table(rows, width=width, most=most, ascii_only=ascii_only))
    return [line.rstrip() for line in written(console).splitlines()]


def train(run: RunDirectory, report: object, steps: int, *, total: int, **values: float) -> None:
    for step in range(1, steps + 1):
        run.write_metrics(step, {key: value for key, value in row(step, **values).items() if key != "step"})
        report(step, total)  # type: ignore[operator]


def test_a_metric_shows_its_value_its_trend_its_course_and_its_healthy_range() -> None:
    lines = lines_of([row(step) for step in range(1, 9)], 80)
    assert lines[0] == "     Reward                    0.800  ↗  ▁▂▃▄▅▆▇█"
    assert lines[1] == "     KL from the reference      1.60  ↗  ▁▂▃▄▅▆▇█                 -1 to 10"
    assert lines[4] == "     Truncated answers         40.0%  →  ▁▁▁▁▁▁▁▁                 at most 50%"
    assert not any("time/" in line or "kl_old" in line for line in lines)


def test_what_is_unhealthy_is_marked_and_shown_even_where_it_is_seldom_looked_at() -> None:
    rows = [row(step, policy__kl_old=0.2, rollout__truncated_frac=0.6) for step in range(1, 4)]
    lines = lines_of(rows, 80)
    assert [line.split()[1] for line in lines if line.startswith("  !")] == ["Truncated", "KL"]
    assert lines_of(rows, 80, most=3) == [
        "     Reward                    0.300  ↗  ▁▄█",
        "  !  Truncated answers         60.0%  →  ▁▁▁                      at most 50%",
        "  !  KL of one update          0.200  →  ▁▁▁                      at most 0.05",
    ]


def test_a_fresh_model_is_not_marked_for_a_loss_that_has_yet_to_fall() -> None:
    (line,) = lines_of([{"step": 1, "loss/nll": 8.3}], 80)
    assert line.startswith("     Loss ")
    assert as_line([{"step": 1, "loss/nll": 8.3, "policy/clip_frac": 0.9}]) == "loss/nll 8.30  policy/clip_frac 90.0%!"


@pytest.mark.parametrize("width", [40, 53, 54, 60, 71, 72, 80, 149, 150, 200])
def test_no_line_is_wider_than_the_terminal_or_cut_off(width: int) -> None:
    lines = lines_of([row(step, policy__entropy=123456.0) for step in range(1, 60)], width)
    assert len(lines) == 8
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(line[:86] for line in lines), "only the meaning, which comes last, may be cut"
    assert any("largest |sampler" in line for line in lines) == (width >= 150)
    assert any("at most" in line for line in lines) == (width >= 72)
    assert any(BLOCKS[-1] in line for line in lines) == (width >= 54)


def test_a_terminal_without_block_characters_gets_signs() -> None:
    lines = lines_of([row(step, reward__mean=-step) for step in range(1, 9)], 80, ascii_only=True)
    assert lines[0].encode("ascii", "replace").decode() == "     Reward                       ?8  -"
    assert not set(BLOCKS) & set("".join(lines))


def test_a_trend_is_good_or_bad_only_where_the_metric_has_a_direction() -> None:
    console = console_of(80)
    rows = [row(s, reward__mean=-s, rollout__truncated_frac=0.5 - 0.01 * s) for s in range(1, 9)]
    console.print(metrics_table(rows, width=80, most=9, ascii_only=False))
    arrows = re.findall(r"\x1b\[(\d+)m([↗↘→])", written(console))
    assert arrows[:5] == [("31", "↘"), ("2", "↗"), ("2", "→"), ("2", "→"), ("32", "↘")]


def test_healthy_ranges_are_said_as_people_do() -> None:
    keys = ("policy/clip_frac", "policy/kl_ref", "rollout/completion_tokens", "reward/mean", "reward/accuracy")
    assert [healthy_range(key) for key in keys] == ["at most 30%", "-1 to 10", "at least 1", "", "50% to 100%"]


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_the_live_view_ends_with_its_last_picture_and_every_warning(tmp_path: Path, width: int) -> None:
    console = console_of(width)
    run = RunDirectory(tmp_path)
    with Bars(console, ("rl",)) as bars:
        train(run, bars.open("optimising", run), 12, total=12, policy__clip_frac=0.4, policy__kl_old=0.2)
        text = written(console)
    assert text.count(HIDE) == text.count(SHOW) > 0
    assert text.rindex(SHOW) > text.rindex(HIDE)
    last = plain(text[text.rindex("\x1b[2K") :])
    assert max(map(len, last)) <= width
    end = " ".join(" ".join(last).split())
    assert "optimising" in end
    assert "12/12" in end
    assert "Clipped tokens at 40%, above the healthy 30% for 3 steps" in end
    assert "Lower rl.learning_rate, rl.epochs or rl.minibatches" in end
    assert "KL of one update at 0.2, above the healthy 0.05" in end


@pytest.mark.parametrize("height", [12, 24])
def test_a_picture_under_way_fits_the_terminal(tmp_path: Path, height: int) -> None:
    console = console_of(60, height)
    run = RunDirectory(tmp_path)
    with Bars(console, ("rl",)) as bars:
        report = bars.open("optimising", run)
        train(run, report, 12, total=99, policy__clip_frac=0.4, policy__kl_old=0.2, policy__ratio_mean=3.0)
        view = bars._live
        lines = console.render_lines(view._picture())  # type: ignore[union-attr]
    assert 3 <= len(lines) <= height
    if height == 24:
        assert any("1 earlier in warnings.jsonl" in "".join(s.text for s in line) for line in lines)


def test_an_interruption_gives_the_cursor_back_and_keeps_the_warnings(tmp_path: Path) -> None:
    console = console_of(80)
    run = RunDirectory(tmp_path)
    bars = Bars(console, ("rl",))
    train(run, bars.open("optimising", run), 5, total=99, policy__clip_frac=0.4)
    with pytest.raises(KeyboardInterrupt), bars:
        raise KeyboardInterrupt
    text = written(console)
    assert text.rindex(SHOW) > text.rindex(HIDE)
    assert "5/99" in text
    assert "Clipped tokens at 40%" in text[text.rindex("5/99") :]


def test_a_resumed_view_knows_the_steps_and_warnings_before(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for step in range(1, 6):
        run.write_metrics(step, {"policy/clip_frac": 0.4})
    console = console_of(80)
    with Bars(console, ("rl",)) as bars:
        report = bars.open("optimising", run)
        run.write_metrics(6, {"policy/clip_frac": 0.4})
        report(6, 6)
    end = "\n".join(plain(written(console))[-8:])
    assert "▁▁▁▁▁▁" in end
    assert "warning, step 3: Clipped tokens" in end
    assert len(run.read_warnings()) == 1


def test_a_pipe_gets_a_line_at_first_at_the_end_and_with_every_warning(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=60)
    run = RunDirectory(tmp_path)
    with Bars(console, ("rl",)) as bars:
        train(run, bars.open("optimising [x]", run), 9, total=9, policy__clip_frac=0.4, policy__entropy=-1e-3)
    lines = written(console).splitlines()
    assert lines[0] == "   optimising [x]"
    assert lines[1].startswith("   1/9  reward/mean 0.100  policy/kl_ref 0.200  policy/entropy -0.001!")
    assert [line.split()[0] for line in lines[1:]] == ["1/9", "3/9", "warning,", "warning,", "9/9"]
    assert lines[4].startswith("   warning, step 3: Clipped tokens at 40%, above the healthy 30% for 3 steps (share of")
    assert lines[4].endswith("beyond the clip, tokens teach nothing.")
    assert not re.search("\x1b", written(console))


def test_a_stage_without_metrics_has_a_plain_bar() -> None:
    console = console_of(80)
    with Bars(console, ("rl",)) as bars:
        report = bars.open("sampling")
        report(3, 3)
    assert "sampling" in plain(written(console))[-2]
    assert "3/3" in plain(written(console))[-2]
