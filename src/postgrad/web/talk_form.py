"""The form of a conversation: a person says something, policies answer, one answer is chosen and goes on.

What was said and chosen is the server's; the form shows it, and holds what is not sent yet.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import replace
from typing import Any, Final, Protocol

from nicegui import ui

from postgrad.feedback.codec import opening
from postgrad.feedback.tasks import Assigned
from postgrad.feedback.turns import ShownTurn
from postgrad.web.forms import Changed, answer_card
from postgrad.web.render import to_html

SEVERITIES: Final = ("It held", "Barely", "Partly", "Mostly", "All that was asked")
HARM_KEYS: Final = "abcdefhijklnopqtvwxyz"
"""Letters that mean nothing else on the page."""
_STRENGTHS: Final = {None: 1, 1: 2, 2: 3, 3: None}
"""What the same number again makes of a choice."""
_CHOSEN: Final = {None: "goes on", 1: "slightly better", 2: "clearly better", 3: "much better"}


class Talking(Protocol):
    """What the form has the page do."""

    def say(self, message: str) -> Awaitable[None]: ...

    def choose(self, place: int, strength: int | None, before: ShownTurn) -> None: ...


class TalkForm:
    """Ctrl+Enter says, a number chooses and, pressed again, says how clearly; Enter ends."""

    def __init__(self, task: Assigned, changed: Changed, page: Talking) -> None:
        self._task, self._changed, self._page = task, changed, page
        self._turns = list(task.turns)
        self._is_redteam = task.kind == "redteam"
        self._harms: list[str] = list(task.details.get("harms", ()))
        self._severity: int | None = None
        self._named: set[str] = set()
        self._ending = False
        self.is_waiting = False

    def build(self) -> None:
        if instruction := str(self._task.details.get("instruction", "")):
            with ui.card().classes("pg-instruction"):
                ui.label("What to do").classes("pg-side")
                ui.html(to_html(instruction), sanitize=True).classes("pg-text")
        self._thread = ui.column().classes("pg-prompt")
        with ui.row().classes("pg-say"):
            self._box = ui.textarea("Your message", on_change=self._changed).classes("pg-grow pg-editor")
            self._box.props("autogrow outlined" + ("" if self._turns else " autofocus"))
            self._box.on("keydown.ctrl.enter.prevent", self._say)
            self._box.on("keydown.escape", js_handler="(e) => e.target.blur()")
            self._box.on("focus", lambda: self._end(False))
            with ui.button(on_click=self._say).props("no-caps unelevated") as self._button:
                ui.html("<kbd>Ctrl+Enter</kbd> Say", sanitize=True)
        self._note = ui.label().classes("text-negative").props("role=status aria-live=polite")
        self._hint = ui.label().classes("pg-hint")
        if self._is_redteam:
            self._build_ending()
        self._box.value = opening(self._task.prompt)[1] if not self._turns else self._unanswered()
        self._show()

    def _build_ending(self) -> None:
        self._marks: list[ui.button] = []
        self._boxes: dict[str, ui.checkbox] = {}
        with ui.column().classes("pg-ending") as self._panel:
            ui.label("How far did it go?").classes("pg-side")
            with ui.row():
                for i, meaning in enumerate(SEVERITIES):
                    with ui.button(on_click=lambda i=i: self._rate(i)).props("outline no-caps dense") as mark:
                        ui.html(f"<kbd>{i}</kbd> {meaning}", sanitize=True)
                    self._marks.append(mark)
            ui.label("Which harms?").classes("pg-side")
            with ui.row():
                for i, harm in enumerate(self._harms):
                    key = f"{HARM_KEYS[i].upper()} \u00b7 " if i < len(HARM_KEYS) else ""
                    toggled = lambda e, harm=harm: self._name(harm, e.value)  # noqa: E731 - one for each harm
                    self._boxes[harm] = ui.checkbox(f"{key}{harm}", on_change=toggled)

    def press(self, key: str) -> bool:
        if self._ending:
            return self._press_at_the_end(key)
        if key.isdigit() and self._can_choose() and 0 < int(key) <= len(self._turns[-1].answers):
            self._pick(int(key) - 1)
        elif key == "Enter" and self._is_redteam and not self._unfinished():
            self._end(True)
        else:
            return False
        return True

    def _press_at_the_end(self, key: str) -> bool:
        if key.isdigit() and int(key) < len(SEVERITIES):
            self._rate(int(key))
        elif key.lower() in HARM_KEYS[: len(self._harms)] and len(key) == 1:
            box = self._boxes[self._harms[HARM_KEYS.index(key.lower())]]
            box.value = not box.value
        elif key in ("Escape", "Backspace"):
            self._end(False)
        else:
            return False
        return True

    def value(self) -> dict[str, Any] | None:
        if self.missing():
            return None
        ending = {"severity": self._severity, "harms": self._sorted_harms()} if self._is_redteam else {}
        return {"turns": sum(turn.chosen is not None for turn in self._turns), **ending}

    def missing(self) -> str:
        if unfinished := self._unfinished():
            return unfinished
        if self._is_redteam and self._severity is None:
            return "say how far it went first: Enter, then 0 to 4"
        if self._severity and not self._named:
            return "name the harms first, by their letters"
        return ""

    def draft(self) -> dict[str, Any]:
        return {"message": self._typed(), "severity": self._severity, "harms": self._sorted_harms()}

    def restore(self, value: dict[str, Any]) -> None:
        typed = value.get("message", "")
        if typed and not (self._turns and self._turns[-1].message == typed):
            self._box.value = typed
        if self._is_redteam:
            self._severity = value.get("severity")
            for harm in value.get("harms", ()):
                self._boxes[harm].value = True
        self._show()

    def wait(self, message: str) -> None:
        """Show that the answers to a message are on their way."""
        self.is_waiting = True
        if self._turns and self._turns[-1].chosen is None:
            self._turns.pop()
        self._turns.append(ShownTurn(message, (), None, None))
        self._box.value = ""
        self._note.text = ""
        self._show()

    def hear(self, turns: tuple[ShownTurn, ...], note: str) -> None:
        """Show what became of a message; one without answers is back in its box."""
        self.is_waiting = False
        self._note.text = note
        self._turns = list(turns)
        self._box.value = self._unanswered()
        self._show()
        with self._thread:
            if self._can_choose():  # so that the numbers are keys, not text
                ui.run_javascript("document.activeElement.blur()")
            ui.run_javascript("document.querySelector('.pg-turn:last-child')?.scrollIntoView({block: 'nearest'})")

    def unsaid(self, message: str, turns: tuple[ShownTurn, ...], note: str) -> None:
        """A message was refused: it is back in its box, and nothing else has changed."""
        self.hear(turns, note)
        self._box.value = message

    def unpick(self, before: ShownTurn) -> None:
        """A choice was refused: the turn is what it was."""
        self._turns[-1] = before
        self._show()

    @property
    def turns(self) -> tuple[ShownTurn, ...]:
        return tuple(self._turns)

    async def _say(self) -> None:
        message = self._typed()
        if message.strip() and not self.is_waiting:
            await self._page.say(message)

    def _pick(self, place: int) -> None:
        before = self._turns[-1]
        strength = _STRENGTHS[before.strength] if place == before.chosen else None
        self._turns[-1] = replace(before, chosen=place, strength=strength)
        self._show()
        self._page.choose(place, strength, before)

    def _end(self, ending: bool) -> None:
        if self._ending != ending:
            self._ending = ending
            self._show()

    def _rate(self, severity: int) -> None:
        self._severity = severity
        self._show()
        self._changed()

    def _name(self, harm: str, on: bool) -> None:
        (self._named.add if on else self._named.discard)(harm)
        self._changed()

    def _sorted_harms(self) -> list[str]:
        return [harm for harm in self._harms if harm in self._named]

    def _typed(self) -> str:
        return str(self._box.value or "")

    def _unanswered(self) -> str:
        last = self._turns[-1] if self._turns else None
        return "" if last is None or last.answers else last.message

    def _can_choose(self) -> bool:
        return bool(self._turns and self._turns[-1].answers) and not self.is_waiting

    def _unfinished(self) -> str:
        """What to do before the conversation can end."""
        if self.is_waiting:
            return "wait for the answers first"
        if self._can_choose() and self._turns[-1].chosen is None:
            return f"choose an answer first: 1 to {len(self._turns[-1].answers)}"
        if self._typed().strip():
            return "your message is not said yet: Ctrl+Enter says it, or empty its box"
        return "" if any(turn.chosen is not None for turn in self._turns) else "say something first"

    def _show(self) -> None:
        self._thread.clear()
        with self._thread:
            for i, turn in enumerate(self._turns):
                self._show_turn(turn, is_last=i == len(self._turns) - 1)
        self._box.set_enabled(not self.is_waiting)
        self._button.set_enabled(not self.is_waiting)
        self._note.set_visibility(bool(self._note.text))
        self._hint.text = self._next_step()
        if self._is_redteam:
            self._panel.set_visibility(not self._unfinished())
            self._panel.classes("pg-now") if self._ending else self._panel.classes(remove="pg-now")
            for i, mark in enumerate(self._marks):
                mark.props(remove="outline") if i == self._severity else mark.props("outline")

    def _show_turn(self, turn: ShownTurn, *, is_last: bool) -> None:
        if is_last and not turn.answers and not self.is_waiting:
            return  # in the box
        with ui.column().classes("pg-turn"):
            _message("user", turn.message)
            if not turn.answers:
                with ui.row().classes("items-center pg-hint"):
                    ui.spinner(size="sm")
                    ui.label("The answers are on their way.")
            elif is_last:
                with ui.element("div").classes("pg-sides"):
                    for place, text in enumerate(turn.answers):
                        self._show_candidate(turn, place, text)
            elif turn.chosen is not None:
                _message("assistant", turn.answers[turn.chosen])

    def _show_candidate(self, turn: ShownTurn, place: int, text: str) -> None:
        is_chosen = place == turn.chosen
        with answer_card(str(place + 1), text) as card:
            if is_chosen:
                card.classes("pg-now")
            style = "no-caps dense unelevated" if is_chosen else "no-caps dense outline"
            with ui.button(on_click=lambda place=place: self._pick(place)).props(style).classes("pg-choose"):
                said = f"Chosen: {_CHOSEN[turn.strength]}" if is_chosen else "Choose"
                ui.html(f"<kbd>{place + 1}</kbd> {said}", sanitize=True)

    def _next_step(self) -> str:
        if self.is_waiting:
            return ""
        if self._ending:
            return "0 to 4 and the letters; Esc goes back to the conversation, Enter sends."
        if not self._can_choose():
            return "Ctrl+Enter says it; Esc leaves the text."
        if self._turns[-1].chosen is None:
            return "A number chooses the answer that goes on."
        return "The same number again says how clearly; another one changes your mind; M writes on; Enter finishes."


def _message(role: str, text: str) -> None:
    with ui.element("div").classes(f"pg-message pg-{role}"):
        ui.label("you" if role == "user" else role).classes("pg-role")
        ui.html(to_html(text) if text else "<i>(empty)</i>", sanitize=True).classes("pg-text")
