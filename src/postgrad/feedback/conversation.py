"""People talk with live policies: what they say is stored before it is answered, and each answer before it is shown.

One path for pages and API. Whoever talks sees texts by their place on the screen; which policy wrote which, and what
the answers are called in the store, stays here.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from sqlalchemy.orm import Session

from postgrad.db.engine import persistent
from postgrad.db.tables import AssignmentRow, PromptRow, SampleRow, TaskRow
from postgrad.errors import DataError, StaleError
from postgrad.feedback import codec, turns
from postgrad.feedback.assignments import assigned, check_unfinished, lock_person, now_of, own
from postgrad.feedback.queue import LabelQueue
from postgrad.feedback.records import Sample
from postgrad.feedback.speakers import Said, Speaker
from postgrad.feedback.tasks import Assigned
from postgrad.feedback.turns import MIN_CANDIDATES, STAGE, TALKED, Turn, can_choose, is_open, turns_of
from postgrad.feedback.values import MAX_CHARACTERS
from postgrad.types import Conversation

MAX_TURNS: Final = 100
_SEED_BITS: Final = 31
"""Of a candidate's seed; no endpoint refuses so many."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Heard:
    """A conversation after something was said."""

    task: Assigned
    note: str
    """What went wrong, in one sentence; empty where every policy answered."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the policies are to answer, and where the answers belong."""

    assignment_id: str
    rater_id: str
    ask: str
    conversation: Conversation
    prompt_id: str
    round_id: str


class Conversations:
    """The conversations that people have in one queue with the same policies.

    Args:
        queue: whose tasks these are.
        speakers: each gives one candidate a turn; a lone one gives two.
    """

    def __init__(self, queue: LabelQueue, speakers: Sequence[Speaker]) -> None:
        self.queue = queue
        self._speakers = [*speakers] * MIN_CANDIDATES if len(speakers) == 1 else [*speakers]
        self._under_way: dict[str, asyncio.Task[str]] = {}

    @property
    def is_open(self) -> bool:
        """Whether there is anybody to talk with."""
        return bool(self._speakers)

    def is_under_way(self, assignment_id: str) -> bool:
        return assignment_id in self._under_way

    async def say(self, assignment_id: str, rater_id: str, message: str, *, version: int) -> Heard:
        """Say something and wait for the candidates. Who stops waiting stops nothing: see `heard`.

        A message that too few policies answered is replaced by the next one, which may be the same.

        Args:
            assignment_id: of a task to talk.
            rater_id: whose it is.
            message: not empty.
            version: of the draft, as the person saw it.

        Raises:
            DataError: nobody to talk with, an empty or too long message, too many turns, or a choice that is not made.
            StaleError: another tab went on, or the last answers are still on their way.
        """
        if not self._speakers:
            raise DataError("this server has no policy to talk with; start it with --policy, or skip the task")
        if self.is_under_way(assignment_id):
            raise StaleError("the answers to your last message are still on their way; wait for them")
        asked = await asyncio.to_thread(self._begin, assignment_id, rater_id, message, version)
        task = asyncio.create_task(self._answer(asked))
        self._under_way[assignment_id] = task
        task.add_done_callback(lambda _: self._under_way.pop(assignment_id))
        return await self.heard(assignment_id, rater_id)

    async def heard(self, assignment_id: str, rater_id: str) -> Heard:
        """The conversation, once the answers that are on their way are here."""
        task = self._under_way.get(assignment_id)
        note = "" if task is None else await asyncio.shield(task)
        return Heard(await asyncio.to_thread(self.queue.look, assignment_id, rater_id), note)

    @persistent
    def choose(
        self, assignment_id: str, rater_id: str, place: int, *, version: int, strength: int | None = None
    ) -> Assigned:
        """Go on with one of the last candidates, or with another one than before.

        Args:
            assignment_id: of a task to talk.
            rater_id: whose it is.
            place: on the screen, 0 the first.
            version: of the draft, as the person saw it.
            strength: 1 slightly, 2 clearly, 3 much better than the others.

        Raises:
            DataError: no such candidate or strength.
            StaleError: another tab went on.
        """
        with self.queue.store.writing() as session:
            row, _, said = self._held(session, assignment_id, rater_id, version)
            if not said or not can_choose(said[-1]) or not 0 <= place < len(said[-1]["order"]):
                raise DataError(f"there is no answer {place + 1} to choose")
            if strength not in (None, 1, 2, 3):
                raise DataError(f"a strength of {strength} is not one of 1, 2 and 3")
            said[-1] = {**said[-1], "chosen": said[-1]["order"][place], "strength": strength}
            row.draft_version += 1
            self._keep(session, row, said)
            return assigned(session, row)

    async def close(self) -> None:
        """Give up what is under way, and let go of the policies."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for speaker in self._speakers:
            await speaker.close()

    @persistent
    def _begin(self, assignment_id: str, rater_id: str, message: str, version: int) -> _Asked:
        if not message.strip() or len(message) > MAX_CHARACTERS:
            raise DataError(f"a message has 1 to {MAX_CHARACTERS} characters, and not only spaces")
        with self.queue.store.writing() as session:
            row, task, said = self._held(session, assignment_id, rater_id, version)
            if said and is_open(said[-1]):
                if can_choose(said[-1]):
                    raise DataError("choose one of the last answers first")
                turns.forget(session, said.pop()["candidates"])
            if len(said) >= MAX_TURNS:
                raise DataError(f"a conversation has at most {MAX_TURNS} turns; finish this one")
            prompt = codec.conversation_from_json(session.get_one(PromptRow, task.prompt_id).conversation)
            ask = secrets.token_hex(8)
            said.append(
                {"ask": ask, "message": message, "candidates": [], "order": [], "chosen": None, "strength": None}
            )
            row.draft_version += 1
            self._keep(session, row, said)
            told = turns.conversation(session, prompt, said)
            return _Asked(assignment_id, rater_id, ask, told, task.prompt_id, task.round_id)

    async def _answer(self, asked: _Asked) -> str:
        """Have every policy answer, and keep each answer as it comes; what went wrong, for the person who waits."""
        results = await asyncio.gather(
            *(self._candidate(asked, speaker) for speaker in self._speakers), return_exceptions=True
        )
        why = ""
        for speaker, result in zip(self._speakers, results, strict=True):
            if isinstance(result, BaseException):
                _log.warning("policy %s gave no answer: %s", speaker.name, str(result) or type(result).__name__)
                # Reasons of another sort may name the policy.
                why = f" ({result})" if isinstance(result, DataError) else why
        failed, num = sum(isinstance(result, BaseException) for result in results), len(results)
        if not failed:
            return ""
        if num - failed < MIN_CANDIDATES:
            return f"{failed} of {num} policies gave no answer{why}: say it again, or something else."
        return f"{failed} of {num} policies gave no answer{why}: choose among the others."

    async def _candidate(self, asked: _Asked, speaker: Speaker) -> None:
        seed = secrets.randbits(_SEED_BITS)
        try:
            async with asyncio.timeout(speaker.timeout_s):
                said = await speaker.say(asked.conversation, seed=seed)
        except TimeoutError:
            raise DataError(f"no answer within {speaker.timeout_s:g} s") from None
        await asyncio.to_thread(partial(self._store, asked, speaker, seed, said))

    @persistent
    def _store(self, asked: _Asked, speaker: Speaker, seed: int, answer: Said) -> None:
        """Keep a candidate at a random place of the turn that it answers, if that still waits."""
        sample = Sample(
            prompt_id=asked.prompt_id,
            round_id=asked.round_id,
            stage=STAGE,
            checkpoint=speaker.checkpoint,
            policy_version=answer.policy_version,
            params=answer.params,
            seed=seed,
            text=answer.text,
            token_ids=answer.token_ids,
            finish_reason=answer.finish_reason,
        )
        with self.queue.store.writing() as session:
            lock_person(session, asked.rater_id)
            row = own(session, asked.assignment_id, asked.rater_id)
            said = turns_of(row.draft)
            if not said or said[-1].get("ask") != asked.ask or not is_open(said[-1]):
                raise StaleError("the conversation went on without this answer")
            self.queue.store.insert(session, SampleRow, [{"id": sample.id, **codec.sample_to_row(sample)}])
            turn = said[-1]
            order = list(turn["order"])
            order.insert(secrets.randbelow(len(order) + 1), len(order))
            said[-1] = {**turn, "candidates": [*turn["candidates"], sample.id], "order": order}
            self._keep(session, row, said)

    def _held(
        self, session: Session, assignment_id: str, rater_id: str, version: int
    ) -> tuple[AssignmentRow, TaskRow, list[Turn]]:
        lock_person(session, rater_id)
        row = own(session, assignment_id, rater_id)
        task = session.get_one(TaskRow, row.task_id)
        if task.kind not in TALKED:
            raise DataError(f"a {task.kind} task is no conversation")
        check_unfinished(row, version)
        return row, task, turns_of(row.draft)

    def _keep(self, session: Session, row: AssignmentRow, said: Sequence[Turn]) -> None:
        row.draft = {"value": {}, "rationale": "", **(row.draft or {}), "turns": list(said)}
        row.lease_until = max(row.lease_until, self.queue.until(now_of(session)))
