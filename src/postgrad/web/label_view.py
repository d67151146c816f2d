"""One label opened: what was asked, what was answered, by whom and when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nicegui import run, ui

from postgrad.feedback.opened import Opened, ShownAnswer, Source, open_label
from postgrad.feedback.store import LabelStore
from postgrad.web.frame import Frame, Visitor, address, rendered
from postgrad.web.render import diff_html, to_html


class LabelView:
    """A page that only shows."""

    def __init__(self, store: LabelStore, visitor: Visitor, label_id: int) -> None:
        self._store, self._label_id = store, label_id
        self._frame = Frame(visitor, "/labels")

    async def build(self) -> None:
        main = self._frame.build()
        found: Opened | None = await self._frame.ask(None, open_label, self._store, self._label_id)
        if found is None:
            with main:
                ui.link("All labels", "/labels").classes("pg-link pg-nothing")
            return
        texts = list(dict.fromkeys(_texts(found)))
        shown = dict(zip(texts, await rendered(texts), strict=True))
        corrected = ""
        if found.line.kind == "edit" and found.value:
            corrected = await run.io_bound(diff_html, found.answers[0].text, found.value["text"]) or ""
        with main:
            ui.label(f"Label {found.line.id}").classes("pg-title")
            _facts(found)
            with ui.column().classes("pg-prompt"):
                for message in found.prompt.messages:
                    _message(message.role, shown[message.content])
                for turn in found.turns:
                    _message("user", shown[turn.message])
                    _answers(turn.answers, shown)
            _answers(found.answers, shown)
            _said(found, shown, corrected)
            _history(found)


def _texts(found: Opened) -> Iterator[str]:
    yield from (message.content for message in found.prompt.messages)
    yield from (answer.text for answer in found.answers)
    for turn in found.turns:
        yield turn.message
        yield from (answer.text for answer in turn.answers)
    if "text" in found.value:
        yield found.value["text"]
    yield from found.details.get("steps", ())


def _facts(found: Opened) -> None:
    line = found.line
    facts: list[tuple[str, str]] = [
        ("says", line.said),
        ("rater", line.rater),
        ("time", f"{line.created_at.astimezone():%Y-%m-%d %H:%M:%S}"),
        ("took", "" if found.seconds is None else f"{found.seconds:.1f} s"),
        ("kind", line.kind),
        ("round", line.round_id),
        ("guideline", "" if line.guideline is None else f"version {line.guideline}"),
        ("of", line.mark),
        ("known answer", found.known),
        ("right", "" if found.correct is None else "yes" if found.correct else "no"),
        ("state", "taken back" if line.undone else ""),
    ]
    with ui.card().classes("pg-answer"), ui.element("dl").classes("pg-facts"):
        for name, value in facts:
            if value:
                _fact(name, value)
        if found.task_id is not None:
            with ui.element("dt"):
                ui.label("task")
            with ui.element("dd"):
                ui.link(str(found.task_id), address("/labels", {"task": found.task_id})).classes("pg-link")


def _fact(name: str, value: str) -> None:
    with ui.element("dt"):
        ui.label(name)
    with ui.element("dd"):
        ui.label(value)


def _message(role: str, content: str) -> None:
    with ui.element("div").classes(f"pg-message pg-{role}"):
        ui.label(role).classes("pg-role")
        ui.html(content, sanitize=True).classes("pg-text")


def _answers(answers: tuple[ShownAnswer, ...], shown: Mapping[str, str]) -> None:
    if not answers:
        return
    with ui.element("div").classes("pg-sides"):
        for answer in answers:
            chosen = " pg-chosen" if answer.verdict in ("chosen", "rank 1") else ""
            with ui.card().classes(f"pg-answer{chosen}"):
                verdict = f" · {answer.verdict}" if answer.verdict else ""
                ui.label(f"{answer.name}{verdict}").classes("pg-side")
                if answer.source is not None:
                    ui.label(_source(answer.source)).classes("pg-hint pg-break")
                ui.html(shown[answer.text] or "<i>(empty)</i>", sanitize=True).classes("pg-text")


def _source(source: Source) -> str:
    params = ", ".join(f"{name} {value}" for name, value in source.params.items() if value not in ([], None))
    return (
        f"{source.stage}, checkpoint {source.checkpoint[:12]}, version {source.policy_version}; {params}; "
        f"seed {source.seed}; ended by {source.finish_reason}; sample {source.sample_id}"
    )


def _said(found: Opened, shown: Mapping[str, str], corrected: str) -> None:
    value = found.value
    if "text" in value:
        with ui.element("div").classes("pg-sides"):
            for title, content in (("What was changed", corrected), ("What was written", shown[value["text"]])):
                if content:
                    with ui.card().classes("pg-answer"):
                        ui.label(title).classes("pg-side")
                        ui.html(content, sanitize=True).classes("pg-text")
    if "steps" in value:
        for i, step in enumerate(found.details.get("steps", ())):
            with ui.card().classes("pg-answer"):
                verdict = value["steps"][i] if i < len(value["steps"]) else "not read"
                ui.label(f"Step {i + 1} · {verdict}").classes("pg-side")
                ui.html(shown[step], sanitize=True).classes("pg-text")
    remarks: list[tuple[str, Any]] = [("Remark", found.rationale), ("Harms", ", ".join(value.get("harms", ())))]
    for title, text in remarks:
        if text:
            with ui.card().classes("pg-answer"):
                ui.label(title).classes("pg-side")
                ui.label(text).classes("pg-plain pg-break")


def _history(found: Opened) -> None:
    with ui.card().classes("pg-answer"):
        ui.label("History").classes("pg-side")
        with ui.element("ol").classes("pg-history"):
            for happening in found.history:
                with ui.element("li"):
                    ui.label(f"{happening.at.astimezone():%Y-%m-%d %H:%M:%S}  {happening.who}: {happening.what}")
    if found.guideline:
        with ui.expansion(f"Guideline, version {found.line.guideline}").classes("pg-answer"):
            ui.html(to_html(found.guideline), sanitize=True).classes("pg-text")
