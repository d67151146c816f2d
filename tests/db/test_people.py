import hashlib
import hmac
import logging
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, update

from postgrad.db.tables import AccountRow, EventRow, RaterRow, TokenRow
from postgrad.errors import AccessError, DataError
from postgrad.feedback import audit, passwords
from postgrad.feedback.people import MAX_TOKEN_DAYS, MAY, OPERATOR, ROLES, Account, People, Role
from postgrad.feedback.store import LabelStore

PASSWORD = "a horse, a staple"
OTHER = "another horse entirely"


@pytest.fixture(autouse=True)
def _cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "COST", (2, 8, 1))


@pytest.fixture
def people(url: str) -> Iterator[People]:
    with LabelStore(url) as store:
        yield People(store)


def add(people: People, name: str, role: Role = "labeler") -> Account:
    return people.add(name, PASSWORD, role, by=OPERATOR)


def actions(people: People) -> list[tuple[str, str, str]]:
    with people.store.reading() as session:
        assert audit.first_broken(session) is None
        rows = session.scalars(select(EventRow).order_by(EventRow.seq))
        return [(row.actor, row.action, row.object.removeprefix("account ")) for row in rows]


def expire_tokens(people: People) -> None:
    with people.store.writing() as session:
        session.execute(update(TokenRow).values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))


def test_an_account_signs_in_and_out(people: People) -> None:
    ada = add(people, "Ada")
    token = people.sign_in("Ada", PASSWORD)
    assert people.who(token) == ada
    people.sign_out(token)
    with pytest.raises(AccessError, match="unknown or has ended; sign in again"):
        people.who(token)
    assert actions(people) == [
        ("operator", "add account", ada.id), (ada.id, "sign in", ada.id), (ada.id, "sign out", ada.id),
    ]  # fmt: skip


def test_an_account_is_a_human_rater_whose_id_says_nothing(people: People) -> None:
    ada, bob = add(people, "Ada"), add(people, "Bob")
    with people.store.reading() as session:
        assert {row.id: row.kind for row in session.scalars(select(RaterRow))} == {ada.id: "human", bob.id: "human"}
    assert "ada" not in ada.id.lower()


def test_a_wrong_name_and_a_wrong_password_are_refused_alike(people: People) -> None:
    add(people, "Ada")
    for name, password in (("Ada", OTHER), ("Eve", PASSWORD), ("Ada", ""), ("", "")):
        with pytest.raises(AccessError, match=r"^the name or the password is wrong$"):
            people.sign_in(name, password)


def test_nobody_signs_in_to_an_account_without_a_password(people: People) -> None:
    me = people.local()
    people.invite("admin", by=OPERATOR)
    for account in people.everyone():
        for password in ("", "0" * 64):
            with pytest.raises(AccessError, match="wrong"):
                people.sign_in(account.name, password)
    assert people.local() == me
    assert me.permissions == MAY["admin"]


def test_unknown_names_cost_what_known_ones_do_and_hashes_are_compared_in_constant_time(
    people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(people, "Ada")
    people.local()
    costs, compared = [], []
    scrypt, compare_digest = hashlib.scrypt, hmac.compare_digest

    def spy_scrypt(secret: bytes, *, salt: bytes, **cost: int) -> bytes:
        costs.append((len(salt), cost))
        return scrypt(secret, salt=salt, **cost)

    def spy_compare(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return compare_digest(a, b)

    monkeypatch.setattr(hashlib, "scrypt", spy_scrypt)
    monkeypatch.setattr(hmac, "compare_digest", spy_compare)
    for name in ("Ada", "Eve", "me"):
        with pytest.raises(AccessError):
            people.sign_in(name, OTHER)
    assert len(costs) == 3
    assert costs[0] == costs[1] == costs[2]
    assert compared == [(32, 32)] * 3


def test_names_and_passwords_mean_the_same_however_they_are_typed(people: People) -> None:
    people.add("  Zo\u0065\u0308 ", "cafe\u0301 au lait, please", "labeler", by=OPERATOR)
    assert people.who(people.sign_in("Zo\u00eb", "caf\u00e9 au lait, please")).name == "Zo\u00eb"


def test_names_and_passwords_that_will_not_do(people: People) -> None:
    add(people, "Ada")
    for name, password, said in (
        ("Bob", "eleven char", "12 to 256 characters"),
        ("Bob", "x" * 257, "12 to 256 characters"),
        ("Bob Robertson", "bob robertson", "the password is the name"),
        (" ", PASSWORD, "a name has 1 to 64"),
        ("x" * 65, PASSWORD, "a name has 1 to 64"),
        ("Bob\x1b[2J", PASSWORD, "printable"),
        ("Ada", PASSWORD, "'Ada' is taken"),
        ("me", PASSWORD, "'me' is taken"),
    ):
        with pytest.raises(DataError, match=said):
            people.add(name, password, "labeler", by=OPERATOR)
    assert [a.name for a in people.everyone()] == ["Ada"]


def test_the_database_and_the_log_hold_neither_passwords_nor_tokens(
    people: People, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ada = add(people, "Ada", "lead")
    session_token = people.sign_in("Ada", PASSWORD)
    api_token = people.make_token("laptop", "reader", 30, by=ada)
    invitation = people.invite("labeler", by=ada)
    people.change_password(session_token, PASSWORD, OTHER)
    with pytest.raises(AccessError):
        people.sign_in("Ada", PASSWORD)
    everything = caplog.text
    with people.store.reading() as session:
        for table in (AccountRow, TokenRow, EventRow, RaterRow):
            everything += repr(session.execute(select(table.__table__)).all())
    for secret in (PASSWORD, OTHER, session_token, api_token, invitation):
        assert secret not in everything
    assert hashlib.sha256(session_token.encode()).hexdigest() in everything


def test_hashes_of_the_same_password_differ_and_carry_their_cost() -> None:
    first, second = (passwords.hash_password(PASSWORD, name="Ada") for _ in range(2))
    assert first != second
    assert first.startswith("scrypt$2$8$1$")
    assert passwords.verify(PASSWORD, first)
    assert not passwords.verify(OTHER, first)


def test_a_hash_made_at_another_cost_is_still_good(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = passwords.hash_password(PASSWORD, name="Ada")
    monkeypatch.undo()
    assert passwords.COST == (2**15, 8, 3)
    assert passwords.verify(PASSWORD, stored)
    assert passwords.hash_password(PASSWORD, name="Ada").startswith("scrypt$32768$8$3$")


def test_an_invitation_makes_one_account_of_its_role(people: People) -> None:
    lead = add(people, "Lea", "lead")
    invitation = people.invite("reviewer", by=lead)
    (waiting,) = (a for a in people.everyone() if a.state == "invited")
    token = people.accept(invitation, "Rob", PASSWORD)
    assert people.who(token) == Account(waiting.id, "Rob", "reviewer", "active", "")
    with pytest.raises(AccessError, match="used or expired"):
        people.accept(invitation, "Eve", PASSWORD)
    assert people.who(people.sign_in("Rob", PASSWORD)).role == "reviewer"
    assert ("accept invitation", waiting.id) in [event[1:] for event in actions(people)]


def test_an_invitation_survives_a_bad_password_and_a_taken_name_but_not_its_week(people: People) -> None:
    add(people, "Ada")
    invitation = people.invite("labeler", by=OPERATOR)
    for name, password in (("Bob", "short"), ("Ada", PASSWORD)):
        with pytest.raises(DataError):
            people.accept(invitation, name, password)
    expire_tokens(people)
    with pytest.raises(AccessError, match="used or expired"):
        people.accept(invitation, "Bob", PASSWORD)


def test_an_invitation_accepted_by_two_at_once_goes_to_one(people: People, url: str) -> None:
    invitation = people.invite("labeler", by=OPERATOR)
    outcomes: list[str] = []
    ready = threading.Barrier(4)

    def accept(name: str) -> None:
        with LabelStore(url) as own:
            ready.wait()
            try:
                People(own).accept(invitation, name, PASSWORD)
                outcomes.append(name)
            except AccessError:
                outcomes.append("refused")

    threads = [threading.Thread(target=accept, args=(name,)) for name in ("Ann", "Ben", "Cat", "Dan")]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert outcomes.count("refused") == 3
    assert [a.name for a in people.everyone()] == [name for name in outcomes if name != "refused"]


def test_tokens_and_invitations_do_not_stand_in_for_each_other(people: People) -> None:
    add(people, "Ada")
    session_token, invitation = people.sign_in("Ada", PASSWORD), people.invite("admin", by=OPERATOR)
    with pytest.raises(AccessError):
        people.who(invitation)
    with pytest.raises(AccessError):
        people.accept(session_token, "Bob", PASSWORD)


def test_an_expired_session_ends_and_the_next_sign_in_sweeps_it_away(people: People) -> None:
    ada = add(people, "Ada")
    old = people.sign_in("Ada", PASSWORD)
    expire_tokens(people)
    with pytest.raises(AccessError, match="ended"):
        people.who(old)
    people.sign_in("Ada", PASSWORD)
    with people.store.reading() as session:
        assert len(session.scalars(select(TokenRow).where(TokenRow.rater_id == ada.id)).all()) == 1


def test_a_new_password_ends_every_other_session_and_token(people: People) -> None:
    ada = add(people, "Ada")
    here, there = people.sign_in("Ada", PASSWORD), people.sign_in("Ada", PASSWORD)
    script = people.make_token("script", "labeler", 1, by=ada)
    with pytest.raises(AccessError, match="old password is wrong"):
        people.change_password(here, OTHER, OTHER)
    assert people.who(there) == ada
    people.change_password(here, PASSWORD, OTHER)
    assert people.who(here) == ada
    for ended in (there, script):
        with pytest.raises(AccessError):
            people.who(ended)
    assert people.who(people.sign_in("Ada", OTHER)) == ada


def test_a_token_allows_no_more_than_its_scope_and_its_owner(people: People) -> None:
    add(people, "Ann", "admin")
    for role in ROLES:
        owner, tokens = add(people, f"one {role}", role), {}
        for scope in ROLES:
            if MAY[scope] <= MAY[role]:
                tokens[scope] = people.make_token("t", scope, 30, by=owner)
                assert people.who(tokens[scope]).permissions == MAY[scope]
            else:
                with pytest.raises(AccessError, match="would allow what its owner may not"):
                    people.make_token("t", scope, 30, by=owner)
        assert role in tokens
        people.change_role(owner.id, "labeler", by=OPERATOR)
        assert {s: people.who(t).permissions for s, t in tokens.items()} == {s: MAY[s] & MAY["labeler"] for s in tokens}


def test_a_token_makes_no_token_beyond_itself(people: People) -> None:
    boss = add(people, "Ada", "admin")
    narrow = people.who(people.make_token("narrow", "reader", 30, by=boss))
    with pytest.raises(AccessError, match="would allow"):
        people.make_token("wide", "admin", 30, by=narrow)
    with pytest.raises(AccessError, match="a token of scope reader has no permission to manage people"):
        people.invite("labeler", by=narrow)


def test_a_token_lives_a_day_to_a_year(people: People) -> None:
    ada = add(people, "Ada")
    for days in (0, -1, MAX_TOKEN_DAYS + 1):
        with pytest.raises(DataError, match="lives 1 to 365 days"):
            people.make_token("t", "labeler", days, by=ada)


def test_people_see_and_end_their_own_tokens_only(people: People) -> None:
    ada, bob = add(people, "Ada"), add(people, "Bob")
    token = people.make_token("laptop", "labeler", 30, by=ada)
    (shown,) = people.tokens(by=ada)
    assert (shown.name, shown.kind, shown.scope) == ("laptop", "api", "labeler")
    assert timedelta(days=29) < shown.expires_at - datetime.now(UTC) < timedelta(days=30)
    assert people.tokens(by=bob) == []
    people.revoke(shown.id, by=bob)
    assert people.who(token) == Account(ada.id, "Ada", "labeler", "active", "", "labeler")
    people.revoke(shown.id, by=ada)
    with pytest.raises(AccessError):
        people.who(token)


def test_who_is_paused_may_read_why_and_do_nothing_else(people: People) -> None:
    lea, ada = add(people, "Lea", "lead"), add(people, "Ada")
    token = people.sign_in("Ada", PASSWORD)
    with pytest.raises(DataError, match="needs a reason"):
        people.pause(ada.id, " ", by=lea)
    people.pause(ada.id, "too fast", by=lea)
    paused = people.who(token)
    assert (paused.state, paused.reason, paused.permissions) == ("paused", "too fast", frozenset())
    with pytest.raises(AccessError, match="this account is paused: too fast"):
        paused.require("label")
    with pytest.raises(AccessError, match="would allow"):
        people.make_token("t", "labeler", 1, by=paused)
    with pytest.raises(DataError, match="paused, not active"):
        people.pause(ada.id, "again", by=lea)
    people.resume(ada.id, by=lea)
    people.who(token).require("label")
    with pytest.raises(DataError, match="active, not paused"):
        people.resume(ada.id, by=lea)


def test_a_lead_governs_only_those_below(people: People) -> None:
    lea, other, boss = add(people, "Lea", "lead"), add(people, "Leo", "lead"), add(people, "Ann", "admin")
    ada = add(people, "Ada")
    for grant in (
        lambda: people.invite("lead", by=lea),
        lambda: people.add("Eve", PASSWORD, "admin", by=lea),
        lambda: people.change_role(ada.id, "lead", by=lea),
        lambda: people.change_role(lea.id, "admin", by=lea),
        lambda: people.change_role(boss.id, "reader", by=lea),
        lambda: people.pause(other.id, "rival", by=lea),
        lambda: people.pause(boss.id, "rival", by=lea),
        lambda: people.erase(ada.id, keep_labels=True, by=lea),
    ):
        with pytest.raises(AccessError, match=r"your role cannot|no permission to erase"):
            grant()
    people.change_role(ada.id, "reviewer", by=lea)
    assert {a.name: a.role for a in people.everyone()} == {
        "Lea": "lead", "Leo": "lead", "Ann": "admin", "Ada": "reviewer",
    }  # fmt: skip


def test_others_manage_nobody(people: People) -> None:
    ada = add(people, "Ada")
    for role in ("reviewer", "labeler", "reader"):
        own = add(people, role, role)
        with pytest.raises(AccessError, match=f"a {role} has no permission to manage people; ask an admin"):
            people.invite("reader", by=own)
        with pytest.raises(AccessError, match="no permission to manage people"):
            people.pause(ada.id, "why not", by=own)


def test_a_role_that_was_taken_away_a_moment_ago_counts_for_nothing(people: People) -> None:
    lea = add(people, "Lea", "lead")
    people.change_role(lea.id, "labeler", by=OPERATOR)
    with pytest.raises(AccessError, match="a labeler has no permission"):
        people.invite("labeler", by=lea)


def test_the_last_admin_stays(people: People) -> None:
    people.local()
    ann = add(people, "Ann", "admin")
    for change in (
        lambda: people.change_role(ann.id, "lead", by=ann),
        lambda: people.pause(ann.id, "holiday", by=ann),
        lambda: people.erase(ann.id, keep_labels=True, by=ann),
    ):
        with pytest.raises(AccessError, match="the last admin; make another one first"):
            change()
    people.change_role(ann.id, "admin", by=ann)
    add(people, "Ben", "admin")
    assert people.change_role(ann.id, "lead", by=ann).role == "lead"


def test_two_admins_who_depose_each_other_at_once_leave_one(people: People, url: str) -> None:
    admins = [add(people, name, "admin") for name in ("Ann", "Ben")]
    ready = threading.Barrier(2)
    outcomes: list[str] = []

    def depose(by: Account, target: Account) -> None:
        with LabelStore(url) as own:
            ready.wait()
            try:
                People(own).change_role(target.id, "labeler", by=by)
                outcomes.append("done")
            except AccessError:
                outcomes.append("refused")

    pairs = (admins, admins[::-1])
    threads = [threading.Thread(target=depose, args=pair) for pair in pairs]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(outcomes) == ["done", "refused"]
    assert sorted(a.role for a in people.everyone()) == ["admin", "labeler"]


def test_people_are_found_by_name_or_id(people: People) -> None:
    ada = add(people, "Ada")
    assert people.find("Ada") == people.find(ada.id) == ada
    with pytest.raises(DataError, match="there is no account 'Eve'"):
        people.find("Eve")
    with pytest.raises(DataError, match="there is no account 'p-0'"):
        people.pause("p-0", "why", by=OPERATOR)
    with pytest.raises(DataError, match="there is no account 'p-0'"):
        people.erase("p-0", keep_labels=True, by=OPERATOR)


def test_each_role_may_what_the_table_says() -> None:
    assert [len(MAY[role]) for role in ROLES] == [8, 7, 4, 1, 1]
    assert MAY["reader"] < MAY["reviewer"] < MAY["lead"] < MAY["admin"]
    assert MAY["labeler"] < MAY["reviewer"]
    assert not MAY["labeler"] & MAY["reader"]


def test_a_lead_signs_people_out_everywhere_and_withdraws_invitations(people: People) -> None:
    lead, ada = add(people, "Lea", "lead"), add(people, "Ada")
    session, token = people.sign_in("Ada", PASSWORD), people.make_token("laptop", "labeler", 1, by=ada)
    own = people.sign_in("Lea", PASSWORD)
    assert people.end_sessions(ada.id, by=lead) == 2
    for ended in (session, token):
        with pytest.raises(AccessError):
            people.who(ended)
    assert people.who(own) == lead
    invitation = people.invite("labeler", by=lead)
    people.end_sessions(next(a.id for a in people.everyone() if a.state == "invited"), by=lead)
    with pytest.raises(AccessError):
        people.accept(invitation, "Eve", PASSWORD)
    with pytest.raises(AccessError):
        people.end_sessions(lead.id, by=ada)


def test_who_is_erased_gets_no_other_role(people: People) -> None:
    ada = add(people, "Ada")
    people.erase(ada.id, keep_labels=True, by=OPERATOR)
    with pytest.raises(DataError, match="erased"):
        people.change_role(ada.id, "lead", by=OPERATOR)
