"""People for leads and admins: who there is, and everything that may be done about each of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from nicegui import ui
from nicegui.events import GenericEventArguments

from postgrad.feedback.people import ROLES, Account, People
from postgrad.feedback.roster import Member, roster
from postgrad.web.frame import Frame, Visitor, address
from postgrad.web.tables import plain_table

HERE: Final = "/people"
_COLUMNS: Final = (
    ("name", "person"),
    ("role", "role"),
    ("state", "state"),
    ("reason", "because"),
    ("answers", "answers"),
    ("gold", "gold right"),
    ("sessions", "signed in"),
    ("id", ""),
)
_MANAGE: Final = """
<q-td :props="props"><q-btn v-if="props.row.governed" flat dense no-caps color="primary" label="Manage"
  :aria-label="'Manage ' + props.row.name" @click="$parent.$emit('manage', props.value)" /></q-td>
"""
_CONSEQUENCES: Final = (
    "Name, password, sessions and tokens are deleted; the account can never be used again.",
    "Remarks, drafts and reasons that they wrote are deleted.",
    "Edits, demonstrations and conversations become empty tombstones; their tasks go back to the queue.",
    "Exports, backups and models that were trained on their labels are not changed.",
    "There is no way back.",
)
_KEEP: Final = {
    True: "Keep comparisons, ranks, ratings, reviews and rulings, without their reasons",
    False: "Remove every label; each gives its place back, and somebody else is asked",
}


class PeoplePage:
    """Draws itself anew after every change."""

    def __init__(self, people: People, visitor: Visitor) -> None:
        self._people, self._visitor = people, visitor
        self._frame = Frame(visitor, HERE)
        self._members: dict[str, Member] = {}

    async def build(self) -> None:
        self._dialog = ui.dialog()
        with self._frame.build():
            with ui.row().classes("items-center"):
                self._role = ui.select(self._grantable(), label="Role", value="labeler").props("dense")
                ui.button("Invite", on_click=self._invite).props("no-caps unelevated")
            self._list = ui.card().classes("pg-answer pg-wide")
        await self._refresh()

    def _grantable(self) -> list[str]:
        return [role for role in ROLES if self._visitor.loaded_by.governs(role)]

    async def _refresh(self) -> None:
        found: list[Member] | None = await self._frame.ask("manage_people", roster, self._people)
        self._list.clear()
        if found is None:
            return
        self._members = {member.account.id: member for member in found}
        with self._list:
            table = plain_table(_COLUMNS, [self._row(member) for member in found], sortable=True)
            table.add_slot("body-cell-id", _MANAGE)
            table.on("manage", self._manage)

    def _row(self, member: Member) -> dict[str, Any]:
        account = member.account
        governed = account.state != "erased" and self._visitor.loaded_by.governs(account.role)
        return {
            "id": account.id,
            "name": account.name,
            "role": account.role,
            "state": account.state,
            "reason": account.reason,
            "answers": member.answers,
            "gold": f"{member.gold_right} of {member.gold}" if member.gold else "",
            "sessions": member.sessions or "",
            "governed": governed or (account.state != "erased" and "erase" in self._visitor.loaded_by.permissions),
        }

    async def _invite(self) -> None:
        invitation = await self._frame.ask("manage_people", self._people.invite, self._role.value)
        if invitation is None:
            return
        await self._refresh()
        self._dialog.clear()
        with self._dialog, ui.card().classes("pg-dialog"):
            ui.label("An invitation for one person").classes("pg-side")
            ui.label("It is good for a week and shown this once. Send it to nobody but the person it is for.")
            link = f"{self._visitor.site}{address('/login', {'invitation': invitation})}"
            ui.input("Link", value=link).props("readonly autofocus outlined").classes("w-full pg-invitation")
            with ui.row():
                ui.button("Copy", on_click=lambda: ui.clipboard.write(link)).props("no-caps unelevated")
                ui.button("Close", on_click=self._dialog.close).props("no-caps flat")
        self._dialog.open()

    def _manage(self, event: GenericEventArguments) -> None:
        member = self._members.get(str(event.args))
        if member is None:
            return
        account = member.account
        self._dialog.clear()
        with self._dialog, ui.card().classes("pg-dialog"):
            ui.label(account.name).classes("pg-side")
            ui.label(f"{account.role}, {account.state}" + (f": {account.reason}" if account.reason else ""))
            self._state_of(account)
            self._role_of(account)
            what = "Withdraw the invitation" if account.state == "invited" else f"End {member.sessions} sessions"
            if member.sessions:
                self._button(what, self._people.end_sessions, account.id)
            if "erase" in self._visitor.loaded_by.permissions:
                self._erasure_of(member)
            ui.button("Close", on_click=self._dialog.close).props("no-caps flat")
        self._dialog.open()

    def _state_of(self, account: Account) -> None:
        if account.state == "paused":
            self._button("Resume", self._people.resume, account.id)
        elif account.state == "active":
            with ui.row().classes("items-center w-full no-wrap"):
                reason = ui.input("Why pause? They read it.").classes("pg-grow")
                pause = self._doing(lambda *, by: self._people.pause(account.id, str(reason.value or ""), by=by))
                reason.on("keydown.enter", pause)
                ui.button("Pause", on_click=pause).props("no-caps outline")

    def _role_of(self, account: Account) -> None:
        with ui.row().classes("items-center w-full no-wrap"):
            options = list(dict.fromkeys([*self._grantable(), account.role]))
            role = ui.select(options, label="Role", value=account.role).classes("pg-grow")
            change = self._doing(lambda *, by: self._people.change_role(account.id, role.value, by=by))
            ui.button("Change role", on_click=change).props("no-caps outline")

    def _erasure_of(self, member: Member) -> None:
        account = member.account
        with ui.expansion("Erase this person").classes("w-full pg-erase"):
            with ui.element("ul").classes("pg-history"):
                for consequence in _CONSEQUENCES:
                    with ui.element("li"):
                        ui.label(consequence)
            ui.label(f"They have given {member.answers:,} labels that stand.")
            keep = ui.radio(_KEEP, value=True)
            typed = ui.input(f"Type {account.name} to erase them").classes("w-full")

            def erase(*, by: Account) -> int:
                return self._people.erase(account.id, keep_labels=bool(keep.value), by=by)

            button = ui.button("Erase for good", on_click=self._doing(erase, permission="erase"))
            button.props("no-caps unelevated color=negative")
            button.bind_enabled_from(typed, "value", lambda text: (text or "").strip() == account.name)

    def _button(self, name: str, call: Callable[..., Any], rater_id: str) -> None:
        ui.button(name, on_click=self._doing(lambda *, by: call(rater_id, by=by))).props("no-caps outline")

    def _doing(self, call: Callable[..., Any], *, permission: Any = "manage_people") -> Callable[[], Awaitable[None]]:
        async def act() -> None:
            self._dialog.close()
            done = await self._frame.ask(permission, call)
            if done is not None:
                await self._refresh()
                self._frame.say("Done.", "positive")

        return act
