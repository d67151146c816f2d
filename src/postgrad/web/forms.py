"""The part of the label page that differs by kind of task: what is shown, what keys mean, what has been answered.

A form holds the answer under way as plain JSON, so that it can be saved as a draft and shown again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol

from nicegui import run, ui

from postgrad.feedback.tasks import Assigned
from postgrad.feedback.values import Kind
from postgrad.web.render import diff_html, to_html

GRADES: Final = (
    ("1", "A much better"),
    ("2", "A better"),
    ("3", "A slightly better"),
    ("4", "Tie"),
    ("5", "B slightly better"),
    ("6", "B better"),
    ("7", "B much better"),
)
PREVIEW_DELAY_S: Final = 0.2
BOTH_BAD, CANNOT_JUDGE = "0", "c"
Changed = Callable[[], None]


class Form(Protocol):
    def build(self) -> None:
        """Put the elements on the page."""

    def press(self, key: str) -> bool:
        """Whether the key meant something here."""

    def value(self) -> dict[str, Any] | None:
        """The answer as the queue wants it, or None while something is missing."""

    def missing(self) -> str:
        """What to do before it can be sent."""

    def restore(self, value: dict[str, Any]) -> None: ...

    def draft(self) -> dict[str, Any]: ...


def form_for(task: Assigned, changed: Changed, send: Callable[[], Any]) -> Form:
    return _FORMS[task.kind](task, changed, send)


def answer_card(title: str, text: str) -> ui.card:
    with ui.card().classes("pg-answer") as card:
        ui.label(title).classes("pg-side")
        ui.html(to_html(text) if text else "<i>(empty)</i>", sanitize=True).classes("pg-text")
    return card


class CompareForm:
    """Two answers, seven grades, both bad, cannot judge."""

    def __init__(self, task: Assigned, changed: Changed, send: Callable[[], Any]) -> None:
        self._task, self._changed, self._send = task, changed, send
        self._choice = ""
        self._buttons: dict[str, ui.button] = {}

    def build(self) -> None:
        with ui.element("div").classes("pg-sides"):
            for side, text in zip("AB", self._task.answers, strict=True):
                answer_card(side, text)
        if self._task.votes:
            with ui.card().classes("pg-answer"):
                ui.label("What the others said").classes("pg-side")
                for vote in self._task.votes:
                    ui.label(vote.said + (f": \u201c{vote.remark}\u201d" if vote.remark else "")).classes("pg-vote")
        with ui.row().classes("pg-grades"):
            for key, label in (*GRADES, (BOTH_BAD, "Both bad"), (CANNOT_JUDGE, "Cannot judge")):
                self._buttons[key] = ui.button(on_click=lambda key=key: self.press(key)).props("outline no-caps dense")
                with self._buttons[key]:
                    ui.html(f"<kbd>{key.upper()}</kbd> {label}", sanitize=True)
        self._reason = ui.input("Why can it not be judged?", on_change=self._changed).classes("w-full pg-reason")
        self._reason.on("keydown.escape", js_handler="(e) => e.target.blur()")
        self._reason.on("focus", lambda: self.press(CANNOT_JUDGE))
        self._reason.on("keydown.enter", self._send)
        self._show()

    def press(self, key: str) -> bool:
        if key.lower() not in self._buttons:
            return False
        self._choice = key.lower()
        self._show()
        self._changed()
        return True

    def value(self) -> dict[str, Any] | None:
        if self._choice == CANNOT_JUDGE:
            reason = str(self._reason.value or "").strip()
            return {"tiers": [], "cannot_judge": reason} if reason else None
        if self._choice == BOTH_BAD:
            return {"tiers": [[0, 1]], "both_bad": True}
        if not self._choice:
            return None
        grade = int(self._choice) - 4
        if grade == 0:
            return {"tiers": [[0, 1]]}
        return {"tiers": [[0], [1]] if grade < 0 else [[1], [0]], "strength": abs(grade)}

    def missing(self) -> str:
        return "say why it cannot be judged" if self._choice == CANNOT_JUDGE else "choose a grade first: 1 to 7, 0 or C"

    def draft(self) -> dict[str, Any]:
        return {"choice": self._choice, "reason": self._reason.value or ""}

    def restore(self, value: dict[str, Any]) -> None:
        self._choice = value["choice"] if "choice" in value else _choice_of(value)
        self._reason.value = value.get("reason") or value.get("cannot_judge", "")
        self._show()

    def _show(self) -> None:
        self._reason.set_visibility(self._choice == CANNOT_JUDGE)
        for key, button in self._buttons.items():
            button.props(remove="outline") if key == self._choice else button.props("outline")


def _choice_of(value: dict[str, Any]) -> str:
    if not value["tiers"]:
        return CANNOT_JUDGE
    if len(value["tiers"]) == 1:
        return BOTH_BAD if value["both_bad"] else "4"
    strength = value["strength"] or 2
    return str(4 - strength if value["tiers"][0] == [0] else 4 + strength)


class RankForm:
    """Answers by number, best first; = ties with the one before, Backspace takes the last one back."""

    def __init__(self, task: Assigned, changed: Changed) -> None:
        self._task, self._changed = task, changed
        self._tiers: list[list[int]] = []
        self._tie = False

    def build(self) -> None:
        with ui.element("div").classes("pg-sides"):
            for i, text in enumerate(self._task.answers, start=1):
                answer_card(str(i), text).on("click", lambda i=i: self.press(str(i)))
        self._line = ui.label().classes("pg-ranking")
        ui.label("Press the numbers from best to worst; = before a number ties it with the last; Backspace takes back.")
        self._show()

    def press(self, key: str) -> bool:
        ranked = [i for tier in self._tiers for i in tier]
        if key == "=" and self._tiers:
            self._tie = True
        elif key == "Backspace" and self._tiers:
            self._tiers[-1].pop()
            self._tiers = [tier for tier in self._tiers if tier]
            self._tie = False
        elif key.isdigit() and 0 < int(key) <= len(self._task.answers) and int(key) - 1 not in ranked:
            if self._tie:
                self._tiers[-1].append(int(key) - 1)
            else:
                self._tiers.append([int(key) - 1])
            self._tie = False
        else:
            return False
        self._show()
        self._changed()
        return True

    def value(self) -> dict[str, Any] | None:
        complete = sum(map(len, self._tiers)) == len(self._task.answers)
        return {"tiers": self._tiers} if complete else None

    def missing(self) -> str:
        return "rank every answer first"

    def draft(self) -> dict[str, Any]:
        return {"tiers": self._tiers}

    def restore(self, value: dict[str, Any]) -> None:
        self._tiers = [list(tier) for tier in value["tiers"]]
        self._show()

    def _show(self) -> None:
        line = " > ".join(" = ".join(str(i + 1) for i in tier) for tier in self._tiers)
        self._line.text = f"Your ranking: {line}{' = ' if self._tie else ''}" if line else "Your ranking: -"


class RateForm:
    """One number an axis, moved through with Tab or the arrows; flags by their letter."""

    def __init__(self, task: Assigned, changed: Changed) -> None:
        self._task, self._changed = task, changed
        self._axes: list[str] = list(task.details.get("axes", ()))
        self._flags: list[str] = list(task.details.get("flags", ()))
        self._rated: dict[str, int] = {}
        self._flagged: set[str] = set()
        self._at = 0

    def build(self) -> None:
        for text in self._task.answers:
            answer_card("Answer", text)
        self._rows: list[ui.row] = []
        self._marks: list[ui.toggle] = []
        for i, axis in enumerate(self._axes):
            with ui.row().classes("pg-axis") as row:
                ui.label(axis).classes("pg-axis-name")
                mark = ui.toggle(list(range(1, 8)), on_change=lambda e, i=i: self._rate(i, e.value))
            self._rows.append(row)
            self._marks.append(mark)
        with ui.row():
            self._boxes = {
                flag: ui.checkbox(
                    f"{chr(ord('a') + i).upper()} · {flag}", on_change=lambda e, f=flag: self._flag(f, e.value)
                )
                for i, flag in enumerate(self._flags)
            }
        self._show()

    def press(self, key: str) -> bool:
        if key in ("ArrowDown", "ArrowUp") and self._axes:
            self._at = (self._at + (1 if key == "ArrowDown" else -1)) % len(self._axes)
        elif key.isdigit() and 1 <= int(key) <= 7 and self._axes:
            self._marks[self._at].value = int(key)
            self._at = min(self._at + 1, len(self._axes) - 1)
        elif len(key) == 1 and 0 <= ord(key.lower()) - ord("a") < len(self._flags):
            box = self._boxes[self._flags[ord(key.lower()) - ord("a")]]
            box.value = not box.value
        else:
            return False
        self._show()
        return True

    def value(self) -> dict[str, Any] | None:
        complete = all(axis in self._rated for axis in self._axes)
        return {"axes": self._rated, "flags": sorted(self._flagged)} if complete else None

    def missing(self) -> str:
        return f"rate {next(axis for axis in self._axes if axis not in self._rated)!r} first"

    def draft(self) -> dict[str, Any]:
        return {"axes": self._rated, "flags": sorted(self._flagged)}

    def restore(self, value: dict[str, Any]) -> None:
        for axis, mark in zip(self._axes, self._marks, strict=True):
            mark.value = value["axes"].get(axis)
        for flag in value["flags"]:
            self._boxes[flag].value = True

    def _rate(self, i: int, number: int | None) -> None:
        if number is not None:
            self._rated[self._axes[i]] = number
        self._changed()

    def _flag(self, flag: str, on: bool) -> None:
        (self._flagged.add if on else self._flagged.discard)(flag)
        self._changed()

    def _show(self) -> None:
        for i, row in enumerate(self._rows):
            row.classes("pg-now") if i == self._at else row.classes(remove="pg-now")


class TextForm:
    """An answer to correct, with what was changed beside it, or one to write."""

    def __init__(self, task: Assigned, changed: Changed, send: Callable[[], Any], *, original: str | None) -> None:
        self._task, self._changed, self._send, self._original = task, changed, send, original
        self._due: ui.timer | None = None

    def build(self) -> None:
        with ui.element("div").classes("pg-sides"):
            with ui.card().classes("pg-answer"):
                ui.label("Your answer" if self._original is None else "Correct this answer").classes("pg-side")
                self._text = ui.textarea(value=self._original or "", on_change=self._on_change)
                self._text.props("autogrow outlined autofocus").classes("w-full pg-editor")
                # Handled in the browser: the text that is sent is the text that stood there.
                self._text.on("keydown.ctrl.enter.prevent", self._send)
                self._text.on("keydown.escape", js_handler="(e) => e.target.blur()")
            with ui.card().classes("pg-answer") as self._beside:
                ui.label("Preview" if self._original is None else "What you changed").classes("pg-side")
                self._preview = ui.html(sanitize=True).classes("pg-text")
        ui.label("Ctrl+Enter sends; Esc leaves the text.").classes("pg-hint")
        self._show()

    def press(self, key: str) -> bool:
        return False

    def value(self) -> dict[str, Any] | None:
        text = str(self._text.value or "")
        return {"text": text} if text.strip() and text != self._original else None

    def missing(self) -> str:
        return "write an answer first" if self._original is None else "nothing is changed yet; skip it if it is right"

    def draft(self) -> dict[str, Any]:
        return {"text": self._text.value or ""}

    def restore(self, value: dict[str, Any]) -> None:
        self._text.value = value["text"]
        self._show()

    def _on_change(self) -> None:
        self._show()
        self._changed()

    def _show(self) -> None:
        if self._due is not None:
            self._due.cancel()
        with self._beside:
            self._due = ui.timer(PREVIEW_DELAY_S, self._draw, once=True)

    async def _draw(self) -> None:
        """Beside the event loop: a long text takes its time, and others label meanwhile."""
        text = str(self._text.value or "")
        how = to_html if self._original is None else partial(diff_html, self._original)
        drawn: str | None = await run.io_bound(how, text)
        if drawn is not None and text == str(self._text.value or ""):
            self._preview.content = drawn


class ReviewForm:
    """A trajectory step by step: G good, N neutral, B bad; the arrows move."""

    VERDICTS: Final = {"g": "good", "n": "neutral", "b": "bad"}

    def __init__(self, task: Assigned, changed: Changed) -> None:
        self._task, self._changed = task, changed
        self._steps: list[str] = list(task.details.get("steps", ()))
        self._verdicts: list[str | None] = [None] * len(self._steps)
        self._at = 0

    def build(self) -> None:
        self._cards: list[ui.card] = []
        self._labels: list[ui.label] = []
        for i, step in enumerate(self._steps, start=1):
            card = answer_card(f"Step {i}", step)
            with card:
                self._labels.append(ui.label().classes("pg-verdict"))
            self._cards.append(card)
        ui.label("G good, N neutral, B bad; the arrows move.").classes("pg-hint")
        self._show()

    def press(self, key: str) -> bool:
        if key in ("ArrowDown", "ArrowUp"):
            self._at = max(0, min(len(self._steps) - 1, self._at + (1 if key == "ArrowDown" else -1)))
        elif key.lower() in self.VERDICTS:
            self._verdicts[self._at] = self.VERDICTS[key.lower()]
            self._at = min(self._at + 1, len(self._steps) - 1)
            self._changed()
        else:
            return False
        self._show()
        return True

    def value(self) -> dict[str, Any] | None:
        return None if None in self._verdicts else {"steps": self._verdicts}

    def missing(self) -> str:
        return f"judge step {self._verdicts.index(None) + 1} first"

    def draft(self) -> dict[str, Any]:
        return {"steps": self._verdicts}

    def restore(self, value: dict[str, Any]) -> None:
        self._verdicts = list(value["steps"]) + [None] * (len(self._steps) - len(value["steps"]))
        self._show()

    def _show(self) -> None:
        for i, (card, label) in enumerate(zip(self._cards, self._labels, strict=True)):
            label.text = self._verdicts[i] or "not judged yet"
            card.classes("pg-now") if i == self._at else card.classes(remove="pg-now")


_FORMS: Final[dict[Kind, Callable[[Assigned, Changed, Callable[[], Any]], Form]]] = {
    "compare": CompareForm,
    "adjudicate": CompareForm,
    "rank": lambda task, changed, send: RankForm(task, changed),
    "rate": lambda task, changed, send: RateForm(task, changed),
    "edit": lambda task, changed, send: TextForm(task, changed, send, original=task.answers[0]),
    "write": lambda task, changed, send: TextForm(task, changed, send, original=None),
    "review": lambda task, changed, send: ReviewForm(task, changed),
}
