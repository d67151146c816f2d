"""Simulated editors: people who mend an answer by the declared utility, and know no facts.

An editor tries what a person with a red pen would: cut after a sentence, cut a sentence that repeats another, end with
a full stop, and do what a constraint of the prompt asks. Whatever raises the declared utility most is kept, and tried
on again, so an edit is never worse than its original. A reference answer only keeps an editor from cutting what is
right: nothing of it is ever written in.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from postgrad.feedback.utility import GOLD, Utility, measures, sentences, utility, words

MIN_GAIN: Final = 1e-9
_TRAILING: Final = " ,;:-\u2013\u2014("


@dataclass(frozen=True, slots=True)
class SimulatedEditor:
    id: str
    carelessness: float
    """Probability of leaving an answer as it is, without reading."""

    def params(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "id"}

    def edit(
        self,
        sample_id: str,
        text: str,
        *,
        finish_reason: str,
        prompt: str,
        reference: str | None,
        constraints: Sequence[Mapping[str, Any]],
        weights: Utility = GOLD,
    ) -> str:
        """The answer as this editor hands it in; a pure function of the editor and the sample.

        Args:
            sample_id: seeds the carelessness.
            text: the answer.
            finish_reason: "length" where the token limit cut it off; what an editor hands in is whole.
            prompt: the last user message.
            reference: of the prompt, if it has one.
            constraints: of the prompt.
            weights: of what the editor wants.
        """
        if random.Random(f"{self!r}|{sample_id}").random() < self.carelessness:
            return text

        def worth(candidate: str, finish: str = "stop") -> float:
            found = measures(
                candidate, finish_reason=finish, reference=reference, constraints=constraints, prompt=prompt
            )
            return utility(found, weights)

        best, value = text, worth(text, finish_reason)
        while True:
            tried = max(_changes(best, constraints), key=worth, default=best)
            if worth(tried) <= value + MIN_GAIN:
                return best
            best, value = tried, worth(tried)


def make_editors(num: int, *, seed: int, carelessness: float) -> list[SimulatedEditor]:
    """Editors whose carelessness scatters evenly between none and twice the given one."""
    dice = random.Random(f"editors|{seed}")
    return [SimulatedEditor(f"editor-{seed}-{i:03d}", min(1.0, 2 * carelessness * dice.random())) for i in range(num)]


def _changes(text: str, constraints: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What one stroke of the pen makes of a text, simplest first."""
    said = sentences(text)
    for num in range(1, len(said)):
        yield " ".join(said[:num])
    for i in range(1, len(said)):
        if said[i] in said[:i]:
            yield " ".join(said[:i] + said[i + 1 :])
    if words(text):
        yield text.strip()
        yield _ended(text)
    for constraint in constraints:
        yield from _obeying(constraint, text)


def _obeying(constraint: Mapping[str, Any], text: str) -> Iterator[str]:
    """Done as it was asked, where that can be done without knowing more."""
    if not words(text):
        return
    value = constraint.get("value")
    match constraint.get("kind"):
        case "max_words" if isinstance(value, int):
            pieces = list(re.finditer(r"\S+", text))
            kept = [piece for piece in pieces if words(piece.group())][:value]
            yield _ended(text[: kept[-1].end()])
        case "one_sentence":
            inner = [sentence.rstrip(".!?\u2026") for sentence in sentences(text)]
            yield _ended("; ".join(inner))
        case "lowercase":
            yield text.lower()
        case "starts_with" if isinstance(value, str):
            yield f"{value} {text.strip()}"
        case "ends_with" if isinstance(value, str):
            yield f"{_ended(text)} {value}"


def _ended(text: str) -> str:
    """With a full stop where none ends it."""
    whole = text.strip().rstrip(_TRAILING)
    return whole if whole.endswith((".", "!", "?", "\u2026")) else whole + "."
