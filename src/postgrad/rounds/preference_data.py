"""What a preference method learns from: labels of any source as token ids, by prompt."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from postgrad.config.pairs import PairsConfig
from postgrad.db.engine import sqlite_url
from postgrad.errors import ConfigError
from postgrad.feedback.pairs import Answered, Label, Pair
from postgrad.feedback.store import LabelStore
from postgrad.methods.preference import Choice, Compared, Opinion
from postgrad.methods.reward_data import answer_ids
from postgrad.run import read_json_lines
from postgrad.text.template import Renderer
from postgrad.types import Conversation


@dataclass
class Prepared:
    """Prompts with their answers, and what became of the other labels."""

    compared: list[Compared] = field(default_factory=list)
    used: list[Label] = field(default_factory=list)
    too_long: list[Label] = field(default_factory=list)
    ties: int = 0
    """How many say nothing of which answer is better, and were left out."""


@contextmanager
def open_labels(cfg: PairsConfig, workspace: Path) -> Iterator[LabelStore | None]:
    """The workspace's label store, where a source asks for it.

    Raises:
        ConfigError: there is none.
    """
    if all(source.format != "labels" for source in cfg.sources):
        yield None
        return
    path = workspace / "postgrad.db"
    if not path.is_file():
        raise ConfigError(
            f"'data.sources': \"labels\" are those of the workspace, and {str(workspace)!r} has none; run "
            f"`postgrad quickstart --workspace {workspace}` first, or name a file of pairs"
        )
    with LabelStore(sqlite_url(path)) as store:
        yield store


def prepare(labels: Iterable[Label], *, renderer: Renderer, max_tokens: int, unpaired: bool) -> Prepared:
    """Token ids, by prompt: answers that were sampled keep their tokens, others are rendered.

    Ties say nothing of which is better, and are left out of pairs; of answers judged by themselves a tie makes two
    good ones, or two bad ones where no answer would do.

    Args:
        labels: checked.
        renderer: of the policy.
        max_tokens: of a prompt with one answer.
        unpaired: whether the method learns from answers one by one.

    Raises:
        DataError: a prompt or answer that the chat template refuses.
    """
    found = Prepared()
    prompts: dict[str, _Prompt] = {}
    for label in labels:
        if label.prompt_id not in prompts:
            prompts[label.prompt_id] = _Prompt(label.prompt, renderer)
        prompt = prompts[label.prompt_id]
        if any(len(prompt.ids) + len(prompt.tokens(answer)) > max_tokens for answer in label.answers):
            found.too_long.append(label)
        elif isinstance(label, Pair) and label.tie and not unpaired:
            found.ties += 1
        else:
            prompt.add(label)
            found.used.append(label)
    found.compared = [prompt.compared for prompt in prompts.values() if prompt.opinions]
    return found


class _Prompt:
    """What is gathered of one prompt."""

    def __init__(self, conversation: Conversation, renderer: Renderer) -> None:
        self.conversation = conversation
        self.ids = renderer.render_prompt(conversation, name=f"prompt {_short(conversation)!r}")
        self.choices: list[Choice] = []
        self.opinions: list[Opinion] = []
        self._renderer = renderer
        self._tokens: dict[Answered, tuple[int, ...]] = {}
        self._answers: dict[tuple[int, ...], int] = {}

    @property
    def compared(self) -> Compared:
        question = self.conversation.messages[-1].content
        return Compared(self.ids, tuple(self._answers), tuple(self.choices), tuple(self.opinions), question)

    def tokens(self, answered: Answered) -> tuple[int, ...]:
        if answered not in self._tokens:
            name = f"the answer to {_short(self.conversation)!r}"
            self._tokens[answered] = answer_ids(answered, self._renderer, name)
        return self._tokens[answered]

    def add(self, label: Label) -> None:
        first, *others = (self._answers.setdefault(self.tokens(a), len(self._answers)) for a in label.answers)
        if not isinstance(label, Pair):
            self.opinions.append(Opinion(first, label.good, label.weight))
            return
        (second,) = others
        if not label.tie:
            self.choices.append(Choice(first, second, label.weight))
        self.opinions += [
            Opinion(first, not label.both_bad, label.weight),
            Opinion(second, label.tie and not label.both_bad, label.weight),
        ]


def _short(conversation: Conversation) -> str:
    text = conversation.messages[-1].content
    return text if len(text) <= 60 else text[:57] + "..."


def write_compared(compared: Iterable[Compared]) -> str:
    """One JSON object a line, as `read_compared` takes it."""
    return "".join(json.dumps(asdict(c)) + "\n" for c in compared)


def read_compared(path: Path) -> list[Compared]:
    return [
        Compared(
            tuple(row["prompt"]),
            tuple(tuple(answer) for answer in row["answers"]),
            tuple(Choice(*choice) for choice in row["choices"]),
            tuple(Opinion(*opinion) for opinion in row["opinions"]),
            row["question"],
        )
        for row in read_json_lines(path)
    ]
