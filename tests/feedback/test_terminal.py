import io
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pexpect
import pytest
from rich.console import Console
from stored import ROUND, example, fill, sample

from postgrad.db.engine import sqlite_url
from postgrad.feedback.store import LabelStore
from postgrad.feedback.terminal import ask_in_terminal, display_order, read_line_key
from postgrad.types import Comparison


@pytest.fixture
def store(labels_url: str) -> Iterator[LabelStore]:
    with LabelStore(labels_url) as opened:
        yield opened


def screen(width: int = 80) -> Console:
    return Console(file=io.StringIO(), width=width, color_system=None)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def pressing(keys: Iterable[str]) -> Callable[[], str]:
    typed = iter(keys)
    return lambda: next(typed, "")


def ask(store: LabelStore, keys: Iterable[str], console: Console | None = None, num: int = 20) -> int:
    return ask_in_terminal(
        store,
        rater_id="me",
        num=num,
        purpose="train",
        round_id=ROUND,
        console=console or screen(),
        read_key=pressing(keys),
    )


def winners(store: LabelStore) -> list[tuple[str, str]]:
    """(prompt id, preferred text or tie) per standing answer."""
    found = []
    for j in store.preferences(purpose="train", round_id=ROUND, rater_id="me"):
        best = j.preference.tiers[0]
        found.append((j.prompt_id, "tie" if len(best) == 2 else j.comparison.answers[best[0]]))
    return found


def test_a_key_is_stored_as_the_answer_that_stood_on_that_side(store: LabelStore) -> None:
    fill(store, num_prompts=12)
    console = screen()
    assert ask(store, "abtaabbatbab", console) == 12
    frames = re.split(r"Question \d+ of 20", shown(console))[1:]
    judged = list(store.preferences(purpose="train", round_id=ROUND, rater_id="me"))
    assert {j.order for j in judged} == {(0, 1), (1, 0)}
    for frame, key, j in zip(frames, "abtaabbatbab", judged, strict=True):
        on_screen = [j.comparison.answers[i] for i in j.order]
        assert frame.index(on_screen[0]) < frame.index(on_screen[1])
        expected = {"a": ((j.order[0],), (j.order[1],)), "b": ((j.order[1],), (j.order[0],)), "t": ((0, 1),)}[key]
        assert j.preference.tiers == expected


def test_quitting_in_the_middle_keeps_what_was_answered_and_resumes_with_the_rest(store: LabelStore) -> None:
    fill(store, num_prompts=5)
    console = screen()
    assert ask(store, "abq", console) == 2
    assert "2 of 20 saved; the same command continues here." in shown(console)
    kept = winners(store)
    again = screen()
    assert ask(store, "bt", again, num=4) == 4
    assert "Question 3 of 4" in shown(again)
    assert "Question 1 of" not in shown(again)
    assert winners(store)[:2] == kept
    assert len({prompt for prompt, _ in winners(store)}) == 4


def test_every_answer_is_in_the_store_before_the_next_question_shows(store: LabelStore) -> None:
    fill(store)
    counts = []

    def answering() -> Iterator[str]:
        for _ in range(4):
            counts.append(store.counts()["preferences"])
            yield "a"

    assert ask(store, answering()) == 4
    assert counts == [0, 1, 2, 3]


def test_undo_takes_back_the_last_answer_and_shows_that_question_again_the_same_way(store: LabelStore) -> None:
    fill(store)
    console = screen()
    assert ask(store, "uabubq", console) == 2
    assert "Nothing to undo." in shown(console)
    frames = re.split(r"Question (\d) of 20", shown(console))
    assert frames[1::2] == ["1", "1", "2", "3", "2", "3"]
    second, again = frames[6].split(" > ")[0], frames[10].split(" > ")[0]
    assert second == again
    assert len(winners(store)) == 2


def test_keys_that_mean_nothing_and_the_end_of_input_store_nothing(store: LabelStore) -> None:
    fill(store)
    console = screen()
    assert ask(store, ["x", "?", "7", "\x07"], console) == 0
    assert shown(console).count("Press one of these keys.") == 4
    assert store.counts()["preferences"] == 0


def test_no_line_is_wider_than_forty_columns_and_all_text_is_there(store: LabelStore) -> None:
    fill(store, num_prompts=1)
    console = screen(width=40)
    ask(store, "q", console)
    assert max(map(len, shown(console).splitlines())) <= 40
    assert all(part in shown(console) for part in ("Question 0?", "Good 0.", "Bad 0."))
    assert "Be brief." not in shown(console)


def test_a_wide_terminal_shows_both_answers_side_by_side(store: LabelStore) -> None:
    fill(store, num_prompts=1)
    console = screen(width=120)
    ask(store, "q", console)
    assert any("Good 0." in line and "Bad 0." in line for line in shown(console).splitlines())


def test_answers_cannot_repaint_the_terminal_or_use_markup(store: LabelStore) -> None:
    store.add_round(ROUND, recipe="quickstart")
    store.add_prompts([example(0, "[bold]Which?[/bold]")])
    texts = ("\x1b[2Jgone", "[red]not red[/red]")
    ids = store.add_samples([sample(0, text) for text in texts])
    store.ask([ids], purpose="train", round_id=ROUND)
    console = screen()
    ask(store, "q", console)
    assert "\x1b" not in shown(console)
    assert all(part in shown(console) for part in ("\ufffd[2Jgone", texts[1], "[bold]Which?[/bold]"))


def test_sides_are_a_fair_coin_fixed_by_rater_and_question() -> None:
    questions = [Comparison(f"c{i}", example(0).prompt, ("x", "y"), ("sx", "sy")) for i in range(2000)]
    orders = [display_order("me", q) for q in questions]
    assert orders == [display_order("me", q) for q in questions]
    assert abs(orders.count((0, 1)) - 1000) < 3.5 * (2000 * 0.25) ** 0.5
    assert orders != [display_order("you", q) for q in questions]


def test_piped_lines_count_by_their_first_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("A\n  tie\n\nq"))
    assert [read_line_key() for _ in range(5)] == ["a", "t", "?", "q", ""]


IN_A_TERMINAL = """
import sys
from rich.console import Console
from postgrad.feedback.store import LabelStore
from postgrad.feedback.terminal import ask_in_terminal

with LabelStore(sys.argv[1]) as store:
    ask_in_terminal(
        store, rater_id="me", num=4, purpose="train", round_id="0001-test", console=Console(color_system=None)
    )
"""


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # pexpect forks; the child execs at once
def test_a_real_terminal_takes_single_keys_ignores_arrows_and_survives_ctrl_c(
    store: LabelStore, tmp_path: Path
) -> None:
    fill(store)
    url = sqlite_url(tmp_path / "labels.db")

    def start() -> pexpect.spawn:
        return pexpect.spawn(
            sys.executable, ["-c", IN_A_TERMINAL, url], dimensions=(24, 40), timeout=120, encoding="utf-8"
        )

    first = start()
    first.expect("Question 1 of 4")
    first.expect("quit > ")
    first.send("\x1b[A")
    first.expect("Press one of these keys")
    assert store.counts()["preferences"] == 0
    first.expect("quit > ")
    first.send("b")
    first.expect("Saved: B")
    assert store.counts()["preferences"] == 1
    first.expect("quit > ")
    first.send("\x03")
    first.expect("1 of 4 saved; the same command")
    first.expect(pexpect.EOF)
    first.close()
    assert first.exitstatus == 0

    second = start()
    second.expect("Question 2 of 4")
    for key, said in (("t", "Saved: tie"), ("u", "Question 2 of 4"), ("a", "Saved: A"), ("q", "2 of 4 saved")):
        second.expect("quit > ")
        second.send(key)
        second.expect(said)
    second.expect(pexpect.EOF)
    second.close()
    assert len(winners(store)) == 2
