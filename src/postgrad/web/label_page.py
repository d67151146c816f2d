"""The page on which people label: one task at a time, by keyboard alone if they like.

Every answer goes through the queue, on the server; the page says "saved" when the queue has said so, and keeps
what is on the screen until then.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Final

from nicegui import background_tasks, run, ui
from nicegui.events import KeyEventArguments

from postgrad.errors import AccessError, PostgradError, StaleError
from postgrad.feedback.codec import opening
from postgrad.feedback.conversation import Conversations, Heard
from postgrad.feedback.people import Permission
from postgrad.feedback.tasks import Assigned, Nothing
from postgrad.feedback.turns import TALKED, ShownTurn
from postgrad.web.forms import Form, form_for
from postgrad.web.frame import Visitor, header, rendered
from postgrad.web.queue_api import kinds_for
from postgrad.web.render import to_html
from postgrad.web.talk_form import TalkForm

DRAFT_DELAY_S: Final = 0.6
LOOK_AGAIN_S: Final = 10.0
_FOCUS: Final = """
document.addEventListener('keydown', (event) => {
  const busy = ['INPUT', 'TEXTAREA', 'SELECT'].includes(event.target.tagName);
  if (busy || event.ctrlKey || event.metaKey || event.altKey) return;
  const boxes = {r: '.pg-remark', c: '.pg-reason', s: '.pg-skip', m: '.pg-say'};
  const box = document.querySelector(boxes[event.key.toLowerCase()] || 'none');
  if (!box) return;
  event.preventDefault();
  box.classList.remove('hidden');
  box.querySelector('input, textarea').focus();
});
"""
"""In the browser, because the letter after R belongs to the remark already, and no server is that quick."""
KEYS: Final = (
    ("1 to 7", "grade a comparison, from A much better to B much better; 4 is a tie"),
    ("0", "both bad"),
    ("C", "cannot judge, with a reason"),
    ("M", "write on in a conversation; Ctrl+Enter says it, a number chooses an answer"),
    ("Enter", "send (Ctrl+Enter inside a text)"),
    ("S", "skip, with a reason"),
    ("U", "undo your last answer"),
    ("G", "guidelines"),
    ("R", "a remark on your answer"),
    ("?", "this list"),
    ("Esc", "leave a text or a window"),
)


class LabelPage:
    """One browser tab of one person."""

    def __init__(self, talks: Conversations, visitor: Visitor) -> None:
        self._talks, self._queue = talks, talks.queue
        self._visitor, self._rater = visitor, visitor.loaded_by.id
        self._task: Assigned | None = None
        self._form: Form | None = None
        self._version = 0
        self._key = ""
        self._shown_at = 0.0
        self._busy = False
        self._turn = asyncio.Lock()
        self._choosing: asyncio.Task[None] | None = None
        self._draft_timer: ui.timer | None = None

    async def build(self) -> None:
        with header(self._visitor, "/"):
            self._count = ui.label().classes("pg-count")
            self._status = ui.label().classes("pg-status").props("role=status aria-live=polite")
            for key, name, action in (
                ("U", "Undo", self.undo),
                ("S", "Skip", self.ask_to_skip),
                ("G", "Guidelines", self.show_guidelines),
                ("?", "Keys", self._show_keys),
            ):
                with ui.button(on_click=action).props("flat dense no-caps color=inherit"):
                    ui.html(f"<kbd>{key}</kbd> {name}", sanitize=True)
        self._guidelines = ui.dialog().props("position=right full-height")
        self._help = ui.dialog()
        with self._help, ui.card():
            for key, meaning in KEYS:
                with ui.row().classes("items-center"):
                    ui.html(f"<kbd>{key}</kbd>", sanitize=True)
                    ui.label(meaning)
        with ui.row().classes("pg-skip") as self._skip:
            self._reason = ui.input("Why skip it? Enter sends, Esc keeps it.").classes("pg-grow")
            self._reason.on("focus", self.ask_to_skip)
            self._reason.on("keydown.enter", self.skip)
            self._reason.on("keydown.escape", lambda: self._skip.set_visibility(False))
            ui.button("Skip", on_click=self.skip).props("no-caps unelevated")
        self._skip.set_visibility(False)
        self._main = ui.column().classes("pg-main")
        ui.keyboard(on_key=self._on_key, repeating=False)
        ui.add_body_html(f"<script>{_FOCUS}</script>")
        ui.timer(max(1.0, self._queue.config.lease_s / 3), self._heartbeat)
        ui.timer(LOOK_AGAIN_S, self._look_again)
        await self.next()

    async def next(self) -> None:
        got = await self._ask(self._claim, permission=None)
        if got is not None:
            await self._show(got)

    def _claim(self) -> Assigned | Nothing:
        """A task for who it is now; what keeps them from having one is shown in its place."""
        try:
            account = self._visitor.account("label")
        except AccessError as e:
            return Nothing(str(e))
        return self._queue.claim(account.id, kinds=kinds_for(account, self._talks))

    async def send(self) -> None:
        await self._once(self._send)

    async def undo(self) -> None:
        await self._once(self._undo)

    async def skip(self) -> None:
        await self._once(self._skip_it)

    async def _once(self, action: Callable[[], Awaitable[None]]) -> None:
        """A second Enter while the first is under way is no second answer."""
        if self._busy:
            return
        self._busy = True
        try:
            await action()
        finally:
            self._busy = False

    async def _send(self) -> None:
        if self._task is None or self._form is None:
            return
        await self._chosen()
        value = self._form.value()
        if value is None:
            self._say(f"Not sent: {self._form.missing()}.", "warning")
            return
        self._key = self._key or uuid.uuid4().hex
        self._cancel_draft()
        receipt = await self._ask(
            self._queue.submit,
            self._task.id,
            self._rater,
            value,
            client_key=self._key,
            milliseconds=round(1000 * (time.monotonic() - self._shown_at)),
            rationale=str(self._remark.value or ""),
        )
        if receipt is not None:
            self._say(f"Saved as label {receipt.label_id}.", "positive")
            await self.next()

    async def _undo(self) -> None:
        await self._save_draft()
        back = await self._ask(self._queue.undo, self._rater, nothing="There is no answer to take back.")
        if back is not None:
            await self._show(back)
            self._say("Taken back: change it and send it again.", "info")

    def ask_to_skip(self) -> None:
        if self._task is not None:
            self._skip.set_visibility(True)

    async def _skip_it(self) -> None:
        reason = str(self._reason.value or "").strip()
        if self._task is None:
            return
        if not reason:
            self._say("A skipped task needs a reason.", "warning")
            return
        if await self._ask(self._queue.skip, self._task.id, self._rater, reason):
            self._say("Skipped.", "info")
            await self.next()

    async def show_guidelines(self) -> None:
        found = await self._ask(lambda: self._queue.guideline() or (0, "There are none yet."))
        if found is None:
            return
        version, text = found
        self._guidelines.clear()
        with self._guidelines, ui.card().classes("pg-guidelines"):
            ui.label(f"Guidelines, version {version}" if version else "Guidelines").classes("pg-side")
            ui.html(to_html(text), sanitize=True).classes("pg-text")
        self._guidelines.open()

    def _show_keys(self) -> None:
        self._help.open()

    async def _show(self, got: Assigned | Nothing) -> None:
        answered = await run.io_bound(self._queue.answered, self._rater)
        if isinstance(got, Assigned):  # kept by `to_html`, which the form calls again
            await rendered([*(message.content for message in got.prompt.messages), *got.answers])
        self._cancel_draft()
        self._main.clear()
        self._skip.set_visibility(False)
        self._reason.value = ""
        self._key = ""
        if isinstance(got, Nothing):
            self._task = self._form = None
            with self._main:
                ui.label(f"{got.reason[0].upper()}{got.reason[1:]}.").classes("pg-nothing")
            self._count.text = f"{answered} answered"
            return
        self._task, self._version = got, got.draft_version
        talk = TalkForm(got, self._changed, self) if got.kind in TALKED else None
        self._form = talk or form_for(got, self._changed, self.send)
        prompt = opening(got.prompt)[0] if talk else got.prompt
        with self._main:
            ui.label(_TITLES[got.kind]).classes("pg-title")
            with ui.column().classes("pg-prompt"):
                for message in prompt.messages:
                    with ui.element("div").classes(f"pg-message pg-{message.role}"):
                        ui.label(message.role).classes("pg-role")
                        ui.html(to_html(message.content), sanitize=True).classes("pg-text")
            self._form.build()
            self._remark = ui.input("Remark (optional)", on_change=self._changed).classes("w-full pg-remark")
            self._remark.on("keydown.ctrl.enter.prevent", self.send)
            self._remark.on("keydown.escape", js_handler="(e) => e.target.blur()")
            with ui.button(on_click=self.send).props("no-caps unelevated").classes("pg-send"):
                ui.html(f"<kbd>Enter</kbd> {'Finish' if talk else 'Send'}", sanitize=True)
        if got.draft is not None:
            self._form.restore(got.draft["value"])
            self._remark.value = got.draft["rationale"]
            self._cancel_draft()
        if talk and self._talks.is_under_way(got.id):
            talk.wait(got.turns[-1].message)
            background_tasks.create(self._hear(self._talks.heard(got.id, self._rater), got, talk, got.turns))
        self._shown_at = time.monotonic()
        self._count.text = f"{answered} answered"
        with self._main:  # whatever called this may stand in what was just cleared
            ui.run_javascript("window.scrollTo(0, 0)")

    async def _on_key(self, event: KeyEventArguments) -> None:
        if not event.action.keydown or event.modifiers.ctrl or event.modifiers.meta or event.modifiers.alt:
            return
        key = str(event.key)
        if self._guidelines.value or self._help.value:
            return
        if self._form is not None and self._form.press(key):
            return
        key = key.lower() if len(key) == 1 else key
        actions = {
            "Enter": self.send,
            "u": self.undo,
            "g": self.show_guidelines,
        }
        if key in actions:
            await actions[key]()
        elif key == "s":
            self.ask_to_skip()
        elif key == "?":
            self._show_keys()

    def _changed(self) -> None:
        self._cancel_draft()
        with self._main:
            self._draft_timer = ui.timer(DRAFT_DELAY_S, self._draft_is_due, once=True)

    def _cancel_draft(self) -> None:
        if self._draft_timer is not None:
            self._draft_timer.cancel()
            self._draft_timer = None

    async def _draft_is_due(self) -> None:
        if self._is_waiting():  # the draft is about to change
            self._changed()
        elif not self._busy:
            await self._save_draft()

    async def _save_draft(self) -> None:
        if self._draft_timer is None or self._task is None or self._form is None:
            return
        self._draft_timer = None
        draft = {"value": self._form.draft(), "rationale": str(self._remark.value or "")}
        if await self._ask(self._queue.save_draft, self._task.id, self._rater, draft, as_seen=True) is not None:
            self._say("Draft saved.", "info")

    async def say(self, message: str) -> None:
        """Say something in the conversation that is shown."""
        task, form = self._task, self._form
        assert task is not None
        assert isinstance(form, TalkForm)
        await self._chosen()
        self._cancel_draft()
        before = form.turns
        form.wait(message)
        async with self._turn:  # after a draft that is under way
            version = self._version
        await self._hear(self._answers(task, message, version), task, form, before)

    async def _answers(self, task: Assigned, message: str, version: int) -> Heard:
        await run.io_bound(self._visitor.account, "label")
        return await self._talks.say(task.id, self._rater, message, version=version)

    async def _hear(
        self, answers: Awaitable[Heard], task: Assigned, form: TalkForm, before: tuple[ShownTurn, ...]
    ) -> None:
        """Wait for the answers and show them, if their task is still the one that is shown."""
        said = form.turns[-1].message
        try:
            heard = await answers
        except PostgradError as e:
            if self._form is form:
                form.unsaid(said, before, f"Not said: {e}.")
            return
        if self._form is form:
            self._version = heard.task.draft_version
            form.hear(heard.task.turns, f"{heard.note[:1].upper()}{heard.note[1:]}")
            self._say("The answers are saved." if form.turns[-1].answers else "", "info")

    def choose(self, place: int, strength: int | None, before: ShownTurn) -> None:
        """Go on with an answer of the conversation that is shown."""
        task, form = self._task, self._form
        assert task is not None
        assert isinstance(form, TalkForm)

        async def ask() -> None:
            got = await self._ask(self._talks.choose, task.id, self._rater, place, strength=strength, as_seen=True)
            if got is None:
                form.unpick(before)
            else:
                self._say("Your choice is saved.", "positive")

        self._choosing = background_tasks.create(ask())

    async def _chosen(self) -> None:
        """Wait for a choice that is on its way."""
        if self._choosing is not None:
            await self._choosing

    def _is_waiting(self) -> bool:
        return isinstance(self._form, TalkForm) and self._form.is_waiting

    async def _heartbeat(self) -> None:
        if self._task is not None and not self._busy:
            await self._ask(self._queue.heartbeat, self._task.id, self._rater)

    async def _look_again(self) -> None:
        if self._task is None and not self._busy:
            await self.next()

    async def _ask(
        self,
        call: Any,
        *args: Any,
        nothing: str = "",
        permission: Permission | None = "label",
        as_seen: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Have the queue do something; None, and the reason on the page, where it would not.

        With `as_seen` only if the draft is as this page knows it, which changes it.
        """

        def guarded(**seen: int) -> Any:
            if permission is not None:
                self._visitor.account(permission)
            return call(*args, **kwargs, **seen)

        try:
            async with self._turn:
                seen = {"version": self._version} if as_seen else {}
                result: Any = await run.io_bound(guarded, **seen)
                if as_seen:
                    self._version = result.draft_version if isinstance(result, Assigned) else result
            if result is None and nothing:
                self._say(nothing, "info")
            return result
        except StaleError as e:
            self._say(f"Not saved: {e}.", "negative")
        except AccessError as e:
            self._say(f"Not saved: {e}. Your last draft is kept; reload the page.", "negative")
        except PostgradError as e:
            self._say(f"Not saved: {e}. What you see is still here; try again.", "negative")
        return None

    def _say(self, text: str, tone: str) -> None:
        self._status.text = text
        self._status.classes(replace="pg-status" if tone == "info" else f"pg-status text-{tone}")


_TITLES: Final = {
    "compare": "Which answer is better?",
    "adjudicate": "Others disagree here: which answer is better?",
    "rank": "Rank the answers",
    "rate": "Rate the answer",
    "edit": "Make this answer right",
    "write": "Write the answer",
    "review": "Judge every step",
    "converse": "Talk with the model",
    "redteam": "Make the model fail",
}
