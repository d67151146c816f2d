"""Models as raters: every question in both orders, every verdict a label that names its model.

A model judge is a rater of kind "model". Its labels never count as people's: `LabelStore.preferences` leaves them out
unless they are asked for, and the queue hands it nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from sqlalchemy import select

from postgrad.db.tables import LabelRow
from postgrad.errors import EngineError
from postgrad.feedback.judge_prompt import TEMPLATE_VERSION, Verdict
from postgrad.feedback.records import Purpose, Submission, content_id
from postgrad.feedback.store import LabelStore
from postgrad.types import Comparison, Conversation, Preference

Order = tuple[int, int]
Tiers = tuple[tuple[int, ...], ...]
ORDERS: Final[tuple[Order, Order]] = ((0, 1), (1, 0))
MAX_SILENT: Final = 16
"""Questions in a row on which nothing comes back, after which the judge, not the question, is at fault."""
_REASON: Final = 1_000
"""Characters of a reason that are kept."""


class Judge(Protocol):
    @property
    def params(self) -> Mapping[str, Any]:
        """What decides its verdicts: model, host, rubric, seed; no secret."""
        ...

    async def judge(self, prompt: Conversation, first: str, second: str) -> Verdict:
        """A verdict on two answers in the order in which they are shown.

        Raises:
            PostgradError: no question can be judged; a question that fails alone is an abstention.
        """
        ...


@dataclass(frozen=True, slots=True)
class JudgeSummary:
    """What a judge made of some comparisons; `flips` and `combined` are over those judged in both orders."""

    judged: int
    """Verdicts, two a comparison."""
    abstained: Mapping[str, int]
    """Abstentions by reason."""
    flips: int
    """Comparisons whose two verdicts contradict each other: another answer, or a tie, once the sides are swapped."""
    combined: Mapping[str, Tiers] = field(repr=False)
    """Tiers by comparison id: what both orders agree on, a tie where they do not."""


def rater_params(judge: Judge) -> dict[str, Any]:
    """What is stored of a judge; the same for the same judge."""
    rubric = hashlib.sha256(judge.params["rubric"].encode()).hexdigest()
    return {**judge.params, "rubric_sha256": rubric, "template": TEMPLATE_VERSION}


def judge_id(judge: Judge) -> str:
    """Names a judge as a rater: another rubric, seed or template is another rater."""
    return f"judge-{str(judge.params['model'])[:100]}-{content_id(rater_params(judge))[:8]}"


async def judge_comparisons(
    store: LabelStore,
    judge: Judge,
    comparisons: Sequence[Comparison],
    *,
    rater_id: str,
    concurrency: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> JudgeSummary:
    """Ask a judge about comparisons of two answers, in both orders, and store each verdict as it comes.

    Asks only what this rater has not answered, so that the same call goes on where another was killed; of two calls at
    the same time, the first verdict on a question counts. A label's rationale is all that the judge wrote.

    Args:
        store: of the comparisons.
        judge: is asked.
        comparisons: of two answers each.
        rater_id: whose labels the verdicts are.
        concurrency: questions under way at a time.
        progress: told how many of the verdicts are there.

    Raises:
        EngineError: nothing comes back on `MAX_SILENT` questions in a row; none of these is stored.
        PostgradError: as the judge and the store raise them; what was judged before is stored.
    """
    store.add_raters("model", {rater_id: rater_params(judge)})
    given = _given(store, rater_id)
    wanted = [(c, order) for c in comparisons for order in ORDERS if (c.id, order) not in given]
    total = 2 * len(comparisons)
    done = total - len(wanted)
    progress(done, total)
    silent: list[Submission] = []
    waiting = iter(wanted)

    async def work() -> None:
        nonlocal done
        for comparison, order in waiting:
            started = time.monotonic()
            verdict = await judge.judge(comparison.prompt, *(comparison.answers[i] for i in order))
            milliseconds = round((time.monotonic() - started) * 1000)
            submission = _submission(comparison.id, rater_id, order, verdict, milliseconds)
            silent.append(submission)
            if verdict.raw is not None:
                store.answer(silent, first_wins=True)
                silent.clear()
            elif len(silent) >= MAX_SILENT:
                raise EngineError(
                    f"{len(silent)} questions in a row got no answer ({verdict.reason}); mend the judge, then run "
                    "the same command, which goes on from here"
                )
            done += 1
            progress(done, total)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    store.answer(silent, first_wins=True)
    return summarise(store, rater_id, comparisons)


def summarise(store: LabelStore, rater_id: str, comparisons: Sequence[Comparison]) -> JudgeSummary:
    """What a judge has made of these comparisons so far."""
    given = _given(store, rater_id)
    values = {c.id: [given[c.id, order] for order in ORDERS if (c.id, order) in given] for c in comparisons}
    verdicts = [value for both in values.values() for value in both]
    tiers = {i: [_tiers(value["tiers"]) for value in both if value["tiers"]] for i, both in values.items()}
    decided = {i: both for i, both in tiers.items() if len(both) == len(ORDERS)}
    return JudgeSummary(
        judged=sum(map(len, tiers.values())),
        abstained=Counter(value["cannot_judge"] for value in verdicts if not value["tiers"]),
        flips=sum(one != other for one, other in decided.values()),
        combined={i: one if one == other else ((0, 1),) for i, (one, other) in decided.items()},
    )


def agreement_with_people(
    store: LabelStore, combined: Mapping[str, Tiers], *, purpose: Purpose, round_id: str | None
) -> tuple[int, int]:
    """(the same verdict, out of): comparisons that people answered too, against what most of them said.

    Where no verdict has more people behind it than every other, there is nothing to agree with.
    """
    said: dict[str, Counter[Tiers]] = {}
    for judged in store.preferences(purpose=purpose, round_id=round_id):
        p = judged.preference
        if judged.rater_kind == "human" and p.tiers and p.comparison_id in combined:
            said.setdefault(p.comparison_id, Counter())[_tiers(p.tiers)] += 1
    verdicts = {comparison_id: counts.most_common(2) for comparison_id, counts in said.items()}
    clear = {i: top[0][0] for i, top in verdicts.items() if len(top) == 1 or top[0][1] > top[1][1]}
    return sum(combined[comparison_id] == tiers for comparison_id, tiers in clear.items()), len(clear)


def _submission(comparison_id: str, rater_id: str, order: Order, verdict: Verdict, milliseconds: int) -> Submission:
    first, second = order
    tiers: dict[str | None, Tiers] = {
        "first": ((first,), (second,)), "second": ((second,), (first,)), "tie": ((0, 1),), None: (),
    }  # fmt: skip
    preference = Preference(
        comparison_id, rater_id, tiers[verdict.winner], rationale=verdict.raw or "", milliseconds=milliseconds
    )
    return Submission(preference, order, reason=verdict.reason[:_REASON])


def _given(store: LabelStore, rater_id: str) -> dict[tuple[str, Order], Mapping[str, Any]]:
    """Values of a rater's standing labels by comparison and order."""
    query = select(LabelRow.comparison_id, LabelRow.display_order, LabelRow.value)
    query = query.where(LabelRow.rater_id == rater_id, LabelRow.undone_at.is_(None))
    shown = {",".join(map(str, order)): order for order in ORDERS}
    with store.reading() as session:
        return {(i, shown[order]): value for i, order, value in session.execute(query)}


def _tiers(tiers: Sequence[Sequence[int]]) -> Tiers:
    """Equal where they say the same."""
    return tuple(tuple(sorted(tier)) for tier in tiers)
