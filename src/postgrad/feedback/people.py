"""Who may do what: accounts, invitations, sessions and tokens of a label store.

A rater's id is random and says nothing about the person, so that it can stay in labels and in the audit once the
person is erased. Of passwords and tokens the store holds hashes alone.
"""

from __future__ import annotations

import hashlib
import secrets
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, get_args

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from postgrad.db.tables import AccountRow, RaterRow, TokenRow
from postgrad.errors import AccessError, DataError
from postgrad.feedback import audit
from postgrad.feedback.erasure import erase_work
from postgrad.feedback.passwords import hash_password, verify
from postgrad.feedback.store import LabelStore

Role = Literal["admin", "lead", "reviewer", "labeler", "reader"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)
Permission = Literal[
    "read", "label", "adjudicate", "see_quality", "manage_tasks", "manage_people", "export", "erase"
]  # fmt: skip
State = Literal["invited", "active", "paused", "erased"]

_REVIEWER: Final[frozenset[Permission]] = frozenset({"read", "label", "adjudicate", "see_quality"})
_LEAD: Final[frozenset[Permission]] = _REVIEWER | {"manage_tasks", "manage_people", "export"}
MAY: Final[Mapping[Role, frozenset[Permission]]] = {
    "admin": _LEAD | {"erase"},
    "lead": _LEAD,
    "reviewer": _REVIEWER,
    "labeler": frozenset({"label"}),
    "reader": frozenset({"read"}),
}

SESSION_LIFE: Final = timedelta(hours=12)
INVITATION_LIFE: Final = timedelta(days=7)
MAX_TOKEN_DAYS: Final = 365
MAX_NAME_CHARACTERS: Final = 64
_NO_INVITATION: Final = "this invitation is unknown, used or expired; ask for a new one"
LOCAL_ID: Final = "me"
"""The person at the keyboard, as the terminal calls them too."""


@dataclass(frozen=True, slots=True)
class Account:
    id: str
    """Of the rater."""
    name: str
    role: Role
    state: State
    reason: str
    """Why it is paused."""
    scope: Role = "admin"
    """Role beyond which the token that it came with allows nothing."""

    @property
    def permissions(self) -> frozenset[Permission]:
        return MAY[self.role] & MAY[self.scope] if self.state == "active" else frozenset()

    def require(self, permission: Permission) -> None:
        """Refuse who may not.

        Raises:
            AccessError: with the reason.
        """
        if self.state != "active":
            raise AccessError(f"this account is {self.state}" + (f": {self.reason}" if self.reason else ""))
        if permission not in self.permissions:
            role = self.role if permission not in MAY[self.role] else f"token of scope {self.scope}"
            raise AccessError(f"a {role} has no permission to {permission.replace('_', ' ')}; ask an admin for it")

    def governs(self, role: Role) -> bool:
        """Whether it may grant and take a role: admins every one, others those that may strictly less than they."""
        return self.permissions == MAY["admin"] or MAY[role] < self.permissions


OPERATOR: Final = Account("operator", "operator", "admin", "active", "")
"""Whoever has the database itself: the command line."""


@dataclass(frozen=True, slots=True)
class Token:
    """What its holder may know of a token later on."""

    id: str
    kind: Literal["session", "api"]
    name: str
    scope: Role
    expires_at: datetime
    created_at: datetime


class People:
    """Accounts of a label store; every change is one transaction and one event of the audit.

    Methods take `by`, the account that asks, look its role up again, and raise AccessError where it may not.
    """

    def __init__(self, store: LabelStore) -> None:
        self.store = store

    def local(self) -> Account:
        """The account of single-user mode, made when it is first asked for; nobody can sign in to it."""
        with self.store.writing() as session:
            row = session.get(AccountRow, LOCAL_ID)
            if row is None:
                row = self._insert(session, LOCAL_ID, name=LOCAL_ID, password="", role="admin", state="active")
                _record(session, LOCAL_ID, "add account", LOCAL_ID, role="admin")
            return _account(row)

    def add(self, name: str, password: str, role: Role, *, by: Account) -> Account:
        """An account that can be used at once.

        Raises:
            DataError: a name or password that will not do, or a name that is taken.
        """
        name = _name(name)
        hashed = hash_password(password, name=name)
        with self.store.writing() as session:
            _granting(session, by, role)
            _free(session, name)
            row = self._insert(session, _new_id(), name=name, password=hashed, role=role, state="active")
            _record(session, by.id, "add account", row.rater_id, role=role)
            return _account(row)

    def invite(self, role: Role, *, by: Account) -> str:
        """A token with which one person, within a week, may make the account that waits for them."""
        with self.store.writing() as session:
            _granting(session, by, role)
            rater_id = _new_id()
            self._insert(session, rater_id, name=rater_id, password="", role=role, state="invited")
            token = _issue(session, rater_id, "invitation", life=INVITATION_LIFE)
            _record(session, by.id, "invite", rater_id, role=role)
            return token

    def accept(self, invitation: str, name: str, password: str) -> str:
        """Use an invitation up; the token of a first session.

        Raises:
            AccessError: it was used, has expired, or never was.
            DataError: a name or password that will not do, or a name that is taken; the invitation stays good.
        """
        with self.store.reading() as session:
            _invitation(session, invitation)
        name = _name(name)
        hashed = hash_password(password, name=name)
        with self.store.writing() as session:
            row = session.get_one(AccountRow, _invitation(session, invitation), with_for_update=True)
            if row.state != "invited":
                raise AccessError(_NO_INVITATION)
            _free(session, name)
            row.name, row.password, row.state = name, hashed, "active"
            session.execute(delete(TokenRow).where(TokenRow.rater_id == row.rater_id))
            token = _issue(session, row.rater_id, "session", life=SESSION_LIFE)
            _record(session, row.rater_id, "accept invitation", row.rater_id)
            return token

    def sign_in(self, name: str, password: str) -> str:
        """The token of a new session. People who are paused may sign in, and read why.

        Raises:
            AccessError: that does not say whether the name or the password is wrong, and takes as long for either.
        """
        with self.store.reading() as session:
            known = session.scalars(select(AccountRow).where(AccountRow.name == _normal(name))).first()
            rater_id, stored = (known.rater_id, known.password) if known else ("", "")
        if not verify(password, stored):
            raise AccessError("the name or the password is wrong")
        with self.store.writing() as session:
            row = session.get_one(AccountRow, rater_id, with_for_update=True)
            if row.password != stored:
                raise AccessError("the name or the password is wrong")
            session.execute(
                delete(TokenRow).where(TokenRow.rater_id == rater_id, TokenRow.expires_at <= datetime.now(UTC))
            )
            token = _issue(session, rater_id, "session", life=SESSION_LIFE)
            _record(session, rater_id, "sign in", rater_id)
            return token

    def who(self, token: str) -> Account:
        """The holder of a session or API token.

        Raises:
            AccessError: the token is unknown, ended or expired.
        """
        with self.store.reading() as session:
            proof = session.get(TokenRow, _digest(token))
            if proof is None or proof.kind == "invitation" or proof.expires_at <= datetime.now(UTC):
                raise AccessError("this session or token is unknown or has ended; sign in again")
            return _account(session.get_one(AccountRow, proof.rater_id), scope=proof.scope)

    def sign_out(self, token: str) -> None:
        with self.store.writing() as session:
            proof = session.get(TokenRow, _digest(token), with_for_update=True)
            if proof is not None:
                session.delete(proof)
                _record(session, proof.rater_id, "sign out", proof.rater_id)

    def change_password(self, token: str, old: str, new: str) -> None:
        """For the holder of a session, which alone goes on: all their other sessions and tokens end.

        Raises:
            AccessError: the old password is wrong.
            DataError: the new one will not do.
        """
        account = self.who(token)
        with self.store.reading() as session:
            stored = session.get_one(AccountRow, account.id).password
        if not verify(old, stored):
            raise AccessError("the old password is wrong")
        hashed = hash_password(new, name=account.name)
        with self.store.writing() as session:
            row = session.get_one(AccountRow, account.id, with_for_update=True)
            if row.password != stored:
                raise AccessError("the old password is wrong")
            row.password = hashed
            session.execute(delete(TokenRow).where(TokenRow.rater_id == account.id, TokenRow.digest != _digest(token)))
            _record(session, account.id, "change password", account.id)

    def make_token(self, name: str, scope: Role, days: int, *, by: Account) -> str:
        """An API token of one's own, shown this once.

        Raises:
            AccessError: the scope may what its owner may not.
            DataError: a life of no day or of more than a year.
        """
        if not 1 <= days <= MAX_TOKEN_DAYS:
            raise DataError(f"a token lives 1 to {MAX_TOKEN_DAYS} days, not {days}")
        name = _name(name)
        with self.store.writing() as session:
            owner = _current(session, by)
            if not MAY[scope] <= owner.permissions:
                raise AccessError(f"a token of scope {scope} would allow what its owner may not")
            token = _issue(session, owner.id, "api", name=name, scope=scope, life=timedelta(days=days))
            _record(session, owner.id, "make token", owner.id, token=_digest(token), scope=scope, days=days)
            return token

    def tokens(self, *, by: Account) -> list[Token]:
        """Own sessions and tokens, newest first."""
        with self.store.reading() as session:
            rows = session.scalars(
                select(TokenRow)
                .where(TokenRow.rater_id == by.id, TokenRow.expires_at > datetime.now(UTC))
                .order_by(TokenRow.created_at.desc(), TokenRow.digest)
            )
            return [_token(row) for row in rows]

    def revoke(self, token_id: str, *, by: Account) -> None:
        """End one of one's own sessions or tokens; one that is not there has ended already."""
        with self.store.writing() as session:
            row = session.get(TokenRow, token_id, with_for_update=True)
            if row is not None and row.rater_id == by.id:
                session.delete(row)
                _record(session, by.id, "revoke token", by.id, token=token_id)

    def pause(self, rater_id: str, reason: str, *, by: Account) -> Account:
        """Take every permission away until `resume`; the person may still sign in and read the reason.

        Raises:
            DataError: no reason, or nobody who could be paused.
        """
        if not reason.strip():
            raise DataError("a pause needs a reason, which the person reads")
        with self._governing(rater_id, by) as (session, row):
            if row.state != "active":
                raise DataError(f"the account is {row.state}, not active")
            _keep_an_admin(session, row)
            row.state, row.reason = "paused", reason.strip()
            _record(session, by.id, "pause", rater_id, reason=audit.digest_of(row.reason))
            return _account(row)

    def resume(self, rater_id: str, *, by: Account) -> Account:
        with self._governing(rater_id, by) as (session, row):
            if row.state != "paused":
                raise DataError(f"the account is {row.state}, not paused")
            row.state, row.reason = "active", ""
            _record(session, by.id, "resume", rater_id)
            return _account(row)

    def change_role(self, rater_id: str, role: Role, *, by: Account) -> Account:
        """Allow more or less from now on, open sessions and tokens included.

        Raises:
            AccessError: `by` governs the old role or the new one too little, or this is the last admin.
            DataError: the person is erased.
        """
        with self._governing(rater_id, by) as (session, row):
            _granting(session, by, role)
            if row.state == "erased":
                raise DataError("the account is erased and can do nothing in any role")
            if role != "admin":
                _keep_an_admin(session, row)
            _record(session, by.id, "change role", rater_id, before=row.role, after=role)
            row.role = role
            return _account(row)

    def end_sessions(self, rater_id: str, *, by: Account) -> int:
        """Sign somebody out everywhere: sessions, tokens and an open invitation; how many ended."""
        with self._governing(rater_id, by) as (session, _):
            result = session.execute(delete(TokenRow).where(TokenRow.rater_id == rater_id))
            ended: int = getattr(result, "rowcount", 0)
            _record(session, by.id, "end sessions", rater_id, ended=ended)
            return ended

    def erase(self, rater_id: str, *, keep_labels: bool, by: Account) -> int:
        """Forget a person: name, password, tokens and all that they wrote; how many labels went.

        The rater's id stays, as a pseudonym. Without `keep_labels` all their labels become tombstones, with it only
        those that are nothing but text. A second time changes nothing more, but completes what was interrupted.

        Raises:
            StoreError: it is done, but traces may be left in a SQLite file that others are reading.
        """
        with self.store.writing() as session:
            authorised(session, by, "erase")
            # Tasks before accounts, as a submission locks them.
            removed = erase_work(session, rater_id, keep_labels=keep_labels, at=datetime.now(UTC))
            row = _locked(session, rater_id)
            _keep_an_admin(session, row)
            session.execute(delete(TokenRow).where(TokenRow.rater_id == rater_id))
            row.name, row.password, row.state, row.reason = rater_id, "", "erased", ""
            _record(session, by.id, "erase", rater_id, keep_labels=keep_labels, removed=removed)
        self.store.scrub()
        return removed

    def find(self, name_or_id: str) -> Account:
        """An account by its name, else by its rater's id.

        Raises:
            DataError: there is none.
        """
        with self.store.reading() as session:
            row = session.scalars(select(AccountRow).where(AccountRow.name == _normal(name_or_id))).first()
            row = row or session.get(AccountRow, name_or_id)
            if row is None:
                raise DataError(f"there is no account {name_or_id!r}; `postgrad label people list` shows all")
            return _account(row)

    def everyone(self) -> list[Account]:
        """All accounts, oldest first, those that are erased among them."""
        with self.store.reading() as session:
            rows = session.scalars(select(AccountRow).order_by(AccountRow.created_at, AccountRow.rater_id))
            return [_account(row) for row in rows]

    @contextmanager
    def _governing(self, rater_id: str, by: Account) -> Iterator[tuple[Session, AccountRow]]:
        """A transaction that changes somebody's account, after checking that `by` may."""
        with self.store.writing() as session:
            row = _locked(session, rater_id)
            if not authorised(session, by, "manage_people").governs(_account(row).role):
                raise AccessError(f"your role cannot change an account whose role is {row.role}; ask an admin")
            yield session, row

    def _insert(
        self, session: Session, rater_id: str, *, name: str, password: str, role: Role, state: State
    ) -> AccountRow:
        self.store.insert(session, RaterRow, [{"id": rater_id, "kind": "human", "params": {}}])
        row = AccountRow(
            rater_id=rater_id, name=name, password=password, role=role, state=state, reason="",
            created_at=datetime.now(UTC),
        )  # fmt: skip
        session.add(row)
        session.flush()
        return row


def _current(session: Session, by: Account) -> Account:
    """The account as it is now; what `by` knows may be a moment old."""
    return by if by is OPERATOR else _account(session.get_one(AccountRow, by.id), scope=by.scope)


def authorised(session: Session, by: Account, permission: Permission) -> Account:
    """The account as it is now, in a transaction that does what `permission` allows.

    Raises:
        AccessError: it does not have that permission any more.
    """
    now = _current(session, by)
    now.require(permission)
    return now


def _granting(session: Session, by: Account, role: Role) -> None:
    if not authorised(session, by, "manage_people").governs(role):
        raise AccessError(f"your role cannot grant the role {role}; ask an admin")


def _locked(session: Session, rater_id: str) -> AccountRow:
    """The account, locked after all that could be the last admin, so that two who act at once see each other."""
    session.scalars(_admins().order_by(AccountRow.rater_id).with_for_update()).all()
    row = session.get(AccountRow, rater_id, with_for_update=True)
    if row is None:
        raise DataError(f"there is no account {rater_id!r}; `postgrad label people list` shows all")
    return row


def _keep_an_admin(session: Session, row: AccountRow) -> None:
    if list(session.scalars(_admins())) == [row]:
        raise AccessError("this is the last admin; make another one first")


def _admins() -> Any:
    """Those who can sign in."""
    return select(AccountRow).where(AccountRow.role == "admin", AccountRow.state == "active", AccountRow.password != "")


def _invitation(session: Session, token: str) -> str:
    """The account that waits for its holder, if it still does."""
    row = session.get(TokenRow, _digest(token))
    if row is None or row.expires_at <= datetime.now(UTC):
        raise AccessError(_NO_INVITATION)
    return row.rater_id


def _issue(
    session: Session, rater_id: str, kind: str, *, life: timedelta, name: str = "", scope: Role = "admin"
) -> str:
    token, now = secrets.token_urlsafe(32), datetime.now(UTC)
    session.add(
        TokenRow(
            digest=_digest(token), rater_id=rater_id, kind=kind, name=name, scope=scope, expires_at=now + life,
            created_at=now,
        )
    )  # fmt: skip
    return token


def _record(session: Session, actor: str, action: str, rater_id: str, **details: Any) -> None:
    audit.record(session, actor=actor, action=action, about=f"account {rater_id}", at=datetime.now(UTC), **details)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _new_id() -> str:
    return f"p-{secrets.token_hex(8)}"


def _normal(name: str) -> str:
    return unicodedata.normalize("NFKC", name).strip()


def _name(name: str) -> str:
    name = _normal(name)
    if not 1 <= len(name) <= MAX_NAME_CHARACTERS or not name.isprintable():
        raise DataError(f"a name has 1 to {MAX_NAME_CHARACTERS} printable characters")
    return name


def _free(session: Session, name: str) -> None:
    if name == LOCAL_ID or session.scalar(select(AccountRow.rater_id).where(AccountRow.name == name)) is not None:
        raise DataError(f"the name {name!r} is taken; choose another one")


def _account(row: AccountRow, *, scope: Any = "admin") -> Account:
    role: Any = row.role
    state: Any = row.state
    return Account(row.rater_id, row.name, role, state, row.reason, scope)


def _token(row: TokenRow) -> Token:
    kind: Any = row.kind
    scope: Any = row.scope
    return Token(row.digest, kind, row.name, scope, row.expires_at, row.created_at)
