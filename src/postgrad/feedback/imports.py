"""Files to labels and tasks. A file is read twice: every bad row is named before anything is written.

What is written is named by its content, so that an import that was cut off is simply run again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

from postgrad.data.readers import read_examples
from postgrad.db.tables import LabelRow
from postgrad.errors import ConfigError, DataError
from postgrad.feedback.foreign import READERS, Judgement, Question
from postgrad.feedback.gold import known_answer
from postgrad.feedback.intake import MAX_MB, BadRow, BadRows, identifier, read_rows
from postgrad.feedback.queue import LabelQueue
from postgrad.feedback.records import RaterKind, Sample, Submission, content_id
from postgrad.feedback.restore import Checked, restore
from postgrad.feedback.store import LabelStore
from postgrad.feedback.tasks import NewTask
from postgrad.feedback.values import ABOUT_ONE, BETWEEN, Kind, check_value
from postgrad.types import Example, Preference, SamplingParams

FORMAT_NAMES: Final = ("native", "prompts", *READERS)
ROUND: Final = "imported"
TASK_KINDS: Final[tuple[Kind, ...]] = ("compare", "edit", "write", "converse")
"""Kinds that need nothing but a prompt and answers."""
_BATCH: Final = 200

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Settings:
    round_id: str = ROUND
    kind: Kind | None = None
    """Of the tasks that questions without judgement become: compare, or write where there are prompts alone."""
    overlap: int = 1
    rater_kind: RaterKind = "human"
    max_mb: int = MAX_MB
    gold: bool = False
    """Judged comparisons become gold tasks, whose answers are known, instead of labels."""
    skip_bad: bool = False
    """Import the other rows where some are bad."""


@dataclass(slots=True)
class Imported:
    """What was found in the file, whether or not the store held it already."""

    rows: int = 0
    labels: int = 0
    tasks: int = 0
    """New ones."""
    skipped: int = 0
    bad: tuple[str, ...] = ()
    """What is wrong with the first of those."""


def import_labels(store: LabelStore, path: Path, format_name: str, settings: Settings | None = None) -> Imported:
    """Read a file into the store.

    Raises:
        ConfigError: an unknown format, or a kind of task that the file's questions cannot become.
        DataError: all rows that are bad, by line, unless they are to be skipped; nothing is written then.
        StoreError: the store holds something else under the same name.
    """
    settings = settings or Settings()
    if format_name not in FORMAT_NAMES:
        raise ConfigError(f"--format {format_name!r} is not one of {', '.join(FORMAT_NAMES)}")
    if settings.kind not in (None, *TASK_KINDS):
        raise ConfigError(f"--kind {settings.kind!r} is not one of {', '.join(TASK_KINDS)}")
    if settings.gold and format_name not in READERS:
        raise ConfigError(f"--gold needs questions with their answers: --format {', '.join(READERS)}")
    if format_name == "native":
        checked = Checked()
        done, bad = _check(path, settings, checked.row)
        restore(store, _good_rows(path, settings, bad))
        done.labels = checked.num_labels
        return done
    try:
        identifier(settings.round_id, "--round")
    except BadRow as e:
        raise ConfigError(str(e)) from None
    store.ensure_round(settings.round_id, made_by=f"import of {format_name}")
    if format_name == "prompts":
        return _import_prompts(store, path, settings)
    return _Questions(store, path, format_name, settings).run()


def _check(path: Path, settings: Settings, check: Any) -> tuple[Imported, set[int]]:
    """Put every row to a check; how many are good, and the lines of the others."""
    bad, total = BadRows(path), 0
    for line, row in read_rows(path, max_mb=settings.max_mb):
        total += 1
        try:
            if isinstance(row, BadRow):
                raise row
            check(row, line)
        except BadRow as e:
            bad.add(line, e)
    bad.check(total, skip=settings.skip_bad)
    num = len(bad.lines)
    return Imported(total - num, skipped=num, bad=tuple(bad.listed)), bad.lines


def _good_rows(path: Path, settings: Settings, bad: set[int]) -> Iterator[dict[str, Any]]:
    for line, row in read_rows(path, max_mb=settings.max_mb):
        if line not in bad:
            assert isinstance(row, dict), "the file changed while it was read"
            yield row


def _import_prompts(store: LabelStore, path: Path, settings: Settings) -> Imported:
    kind = settings.kind or "write"
    if kind in (*BETWEEN, *ABOUT_ONE):
        raise ConfigError(f"--kind {kind}: prompts have no answers to {kind}; use write or converse")

    def named(row: dict[str, Any], line: int) -> None:
        if "id" in row:
            identifier(row["id"], "id")

    if settings.skip_bad:
        raise ConfigError("--skip-bad does not go with --format prompts: mend the rows that it names")
    _check(path, settings, named)
    examples = read_examples(path)
    store.add_prompts(examples)
    tasks = [NewTask(kind, example.id, overlap=settings.overlap) for example in examples]
    added = sum(LabelQueue(store).add(batch, round_id=settings.round_id) for batch in _batches(tasks))
    return Imported(len(examples), 0, added)


class _Questions:
    """The import of another tool's file."""

    def __init__(self, store: LabelStore, path: Path, format_name: str, settings: Settings) -> None:
        self._store = store
        self._path = path
        self._source = format_name
        self._read = READERS[format_name]
        self._settings = settings
        self._stem = "imported-" + identifier(path.name.split(".")[0], "file name")
        self._said: dict[str, tuple[str, int]] = {}

    def run(self) -> Imported:
        done, bad = _check(self._path, self._settings, self._row)
        for batch in _batches(map(self._read, _good_rows(self._path, self._settings, bad))):
            self._write(batch, done)
        return done

    def _row(self, row: dict[str, Any], line: int) -> None:
        question = self._read(row)
        kind = self._settings.kind or "compare"
        if not question.judgements and kind in BETWEEN and len(question.answers) < 2:
            raise BadRow("one answer, and no judgement: there is nothing to compare; use --kind edit")
        if self._settings.gold:
            _gold_answer(question)
        for judgement in question.judgements:
            axes = sorted(judgement.value.get("axes", ()))
            about = content_id(question.prompt_id, question.answers, judgement.answer, judgement.rater, axes)
            value = content_id(judgement.value)
            said, first = self._said.setdefault(about, (value, line))
            if said != value:
                raise BadRow(f"the same rater judged the same answers otherwise in line {first}")

    def _write(self, questions: Sequence[Question], done: Imported) -> None:
        store, round_id = self._store, self._settings.round_id
        store.add_prompts({q.prompt_id: Example(q.prompt_id, q.prompt) for q in questions}.values())
        samples = [[self._sample(q.prompt_id, answer) for answer in q.answers] for q in questions]
        store.add_samples(sample for own in samples for sample in own)
        if self._settings.gold:
            done.tasks += self._add_gold(questions, samples)
            return
        raters = {self._rater(judgement) for q in questions for judgement in q.judgements}
        store.add_raters(self._settings.rater_kind, {rater: {"source": self._source} for rater in sorted(raters)})
        asked = [i for i, q in enumerate(questions) if len(q.answers) > 1]
        groups = [[sample.id for sample in samples[i]] for i in asked]
        comparisons = dict(zip(asked, store.ask(groups, purpose="train", round_id=round_id), strict=True))
        self._label(questions, comparisons, samples)
        done.labels += sum(len(q.judgements) for q in questions)
        tasks = [
            task
            for i, q in enumerate(questions)
            if not q.judgements
            for task in self._tasks(q, comparisons.get(i), samples[i])
        ]
        done.tasks += LabelQueue(store).add(tasks, round_id=round_id)

    def _add_gold(self, questions: Sequence[Question], samples: Sequence[Sequence[Sample]]) -> int:
        round_id = self._settings.round_id
        groups = [[sample.id for sample in own] for own in samples]
        asked = self._store.ask(groups, purpose="gold", round_id=round_id)
        tasks = [
            NewTask("compare" if len(q.answers) == 2 else "rank", comparison_id, answer=_gold_answer(q))
            for q, comparison_id in zip(questions, asked, strict=True)
        ]
        return LabelQueue(self._store).add(tasks, round_id=round_id)

    def _label(
        self, questions: Sequence[Question], comparisons: dict[int, str], samples: Sequence[Sequence[Sample]]
    ) -> None:
        submissions, ratings = [], []
        for i, question in enumerate(questions):
            for judgement in question.judgements:
                if judgement.answer is not None:
                    ratings.append(self._rating(judgement, samples[i][judgement.answer]))
                    continue
                tiers = tuple(tuple(tier) for tier in judgement.value["tiers"])
                preference = Preference(
                    comparisons[i], self._rater(judgement), tiers, milliseconds=judgement.milliseconds
                )
                submissions.append(Submission(preference, tuple(range(len(question.answers)))))
        self._store.answer(submissions)
        with self._store.writing() as session:
            self._store.insert(session, LabelRow, ratings)

    def _rating(self, judgement: Judgement, sample: Sample) -> dict[str, Any]:
        rater = self._rater(judgement)
        details = {"axes": list(judgement.value["axes"])}
        return {
            "kind": judgement.kind,
            "prompt_id": sample.prompt_id,
            "sample_id": sample.id,
            "rater_id": rater,
            "client_key": content_id("imported", sample.id, rater, judgement.value),
            "value": check_value(judgement.kind, judgement.value, details=details),
            "display_order": "",
            "rationale": "",
            "weight": 1.0,
        }

    def _tasks(self, question: Question, comparison_id: str | None, samples: Sequence[Sample]) -> Iterator[NewTask]:
        kind = self._settings.kind or "compare"
        if kind == "compare" and len(question.answers) > 2:
            kind = "rank"
        if kind in BETWEEN:
            assert comparison_id is not None
            subjects = [comparison_id]
        else:
            subjects = [sample.id for sample in samples] if kind in ABOUT_ONE else [question.prompt_id]
        return (NewTask(kind, subject, overlap=self._settings.overlap) for subject in subjects)

    def _sample(self, prompt_id: str, answer: str) -> Sample:
        return Sample(
            prompt_id=prompt_id,
            round_id=self._settings.round_id,
            stage="imported",
            checkpoint=f"imported:{self._source}",
            policy_version=0,
            params=SamplingParams(max_tokens=0),
            seed=0,
            text=answer,
            token_ids=(),
            finish_reason="stop",
        )

    def _rater(self, judgement: Judgement) -> str:
        return f"{self._stem}-{judgement.rater}" if judgement.rater else self._stem


def _gold_answer(question: Question) -> Mapping[str, Any]:
    if any(judgement.answer is not None for judgement in question.judgements):
        raise BadRow("a gold question compares or ranks answers; this one rates them")
    try:
        return known_answer([judgement.value for judgement in question.judgements])
    except DataError as e:
        raise BadRow(str(e)) from None


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    it = iter(items)
    while batch := list(islice(it, _BATCH)):
        yield batch
