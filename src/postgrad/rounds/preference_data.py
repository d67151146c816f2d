"""What a preference method learns from: pairs of any source as token ids, with a count of all that was left out."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from postgrad.config.preference import PreferenceRecipe
from postgrad.data.readers import read_examples
from postgrad.db.engine import sqlite_url
from postgrad.errors import ConfigError, DataError
from postgrad.feedback.pairs import Answered, Pair
from postgrad.feedback.records import Sample, content_id
from postgrad.feedback.store import LabelStore
from postgrad.methods.preference import Choice, Compared, Opinion
from postgrad.text.template import Renderer
from postgrad.types import Conversation, Example, Message

HELDOUT_SHARE = 0.15
"""Of the prompts, by their hash: never learned from, so that accuracy means something."""
LEFT_OUT = ("equal", "empty", "too long", "ties")


@dataclass(frozen=True, slots=True)
class Verdict:
    """One answer that somebody found good or bad by itself."""

    prompt_id: str
    prompt: Conversation
    answer: str
    good: bool


@dataclass
class Prepared:
    """Prompts in two parts, and what became of what was read."""

    train: list[Compared] = field(default_factory=list)
    heldout: list[Compared] = field(default_factory=list)
    left_out: list[str | None] = field(default_factory=list)
    """Why, of everything that was read, in its order; None where it is used."""


def labels_path(workspace: Path) -> Path:
    """The workspace's label store.

    Raises:
        ConfigError: there is none.
    """
    path = workspace / "postgrad.db"
    if not path.is_file():
        raise ConfigError(
            f"'data.source' = \"labels\" are those of the workspace, and {str(workspace)!r} has none; run "
            f"`postgrad quickstart --workspace {workspace}` first, or name a file of pairs"
        )
    return path


def pairs_for(recipe: PreferenceRecipe, *, workspace: Path, source: Path | None) -> tuple[list[Pair], list[Verdict]]:
    """Everything that the recipe's source says: pairs, and, of a file for kto, answers judged by themselves.

    Raises:
        ConfigError: no label store.
        DataError: rows that are neither; all of them are named.
    """
    if source is None:
        with LabelStore(sqlite_url(labels_path(workspace))) as store:
            return labelled_pairs(store), []
    unpaired = recipe.preference.algorithm == "kto"
    examples = read_examples(source, needs="prompt" if unpaired else "pair")
    bad = [f"{e.id!r}" for e in examples if not _is_judged(e) and not all(map(_is_text, (e.completion, e.rejected)))]
    if bad:
        wanted = "'chosen' and 'rejected', each one assistant turn of text"
        if unpaired:
            wanted += ", or 'completion' likewise with a 'label' that is true or false"
        raise DataError(f"{str(source)!r}: {len(bad)} rows do not have {wanted}: {', '.join(bad[:10])}")
    pairs = [_file_pair(e, source) for e in examples if e.rejected]
    return pairs, [_verdict(e) for e in examples if not e.rejected]


def prepare(
    pairs: Iterable[Pair], verdicts: Iterable[Verdict], *, renderer: Renderer, context: int, unpaired: bool
) -> Prepared:
    """Token ids, by prompt: answers that were sampled keep their tokens, others are rendered.

    Ties say nothing of which is better, and are left out of pairs; of answers judged by themselves a tie makes two
    good ones, or two bad ones where no answer would do.

    Args:
        pairs: of `pairs_for`.
        verdicts: likewise.
        renderer: of the policy.
        context: most tokens that it reads.
        unpaired: whether the method learns from answers one by one.

    Raises:
        DataError: too few prompts remain; the sentence counts what was left out.
    """
    found = Prepared()
    prompts: dict[str, _Prompt] = {}

    def prompt_of(prompt_id: str, conversation: Conversation) -> _Prompt:
        if prompt_id not in prompts:
            prompts[prompt_id] = _Prompt(conversation, renderer, context)
        return prompts[prompt_id]

    labels: tuple[Pair | Verdict, ...] = (*pairs, *verdicts)
    for said in labels:
        prompt = prompt_of(said.prompt_id, said.prompt)
        if isinstance(said, Pair):
            reason = _add_pair(prompt, said, unpaired=unpaired)
        else:
            reason = _add_verdict(prompt, said)
        found.left_out.append(reason)
    by_hash = sorted(prompts, key=lambda i: hashlib.sha256(f"heldout\n{i}".encode("utf-8", "replace")).digest())
    kept = [prompts[i].compared for i in by_hash if (prompts[i].opinions if unpaired else prompts[i].choices)]
    fewest = 3 if unpaired else 2
    if len(kept) < fewest:
        reasons = Counter(filter(None, found.left_out))
        listed = ", ".join(f"{num} {reason}" for reason, num in reasons.items()) or "none was left out"
        raise DataError(
            f"of {len(found.left_out)} labels on {len(prompts)} prompts, {len(kept)} prompts remain to learn from and "
            f"to check it on, and it takes {fewest} ({listed}); label more prompts"
        )
    num = max(1, round(HELDOUT_SHARE * len(kept)))
    found.heldout, found.train = kept[:num], kept[num:]
    return found


class _Prompt:
    """What is gathered of one prompt."""

    def __init__(self, conversation: Conversation, renderer: Renderer, context: int) -> None:
        self.conversation = conversation
        self.ids = renderer.render_prompt(conversation, name=f"prompt {_short(conversation)!r}")
        self.choices: list[Choice] = []
        self.opinions: list[Opinion] = []
        self._renderer = renderer
        self._context = context
        self._answers: dict[tuple[int, ...], int] = {}

    @property
    def compared(self) -> Compared:
        question = self.conversation.messages[-1].content
        return Compared(self.ids, tuple(self._answers), tuple(self.choices), tuple(self.opinions), question)

    def refuses(self, answered: Answered) -> str | None:
        """Why there is nothing of it to learn, or no room for it."""
        if not answered.text.strip():
            return "empty"
        return "too long" if len(self.ids) + len(self.tokens(answered)) > self._context else None

    def number(self, answered: Answered) -> int:
        return self._answers.setdefault(self.tokens(answered), len(self._answers))

    def tokens(self, answered: Answered) -> tuple[int, ...]:
        """As sampled where this tokenizer reads the text in the tokens, else rendered, with the token that ends it."""
        if answered.token_ids and self._renderer.decode(answered.token_ids) == answered.text:
            return answered.token_ids
        whole = Conversation(
            (*self.conversation.messages, Message("assistant", answered.text)), self.conversation.tools
        )
        turn = len(whole.messages) - 1
        ids, mask = self._renderer.render(whole, train={turn}, name=f"the answer to {_short(self.conversation)!r}")
        assert ids[: len(self.ids)] == self.ids, "an answer follows its prompt"
        return tuple(token for token, trained in zip(ids, mask, strict=True) if trained)


def _add_pair(prompt: _Prompt, pair: Pair, *, unpaired: bool) -> str | None:
    """Why it was left out, or None."""
    if pair.better.text == pair.worse.text:
        return "equal"
    if pair.tie and not unpaired:
        return "ties"
    for side in (pair.better, pair.worse):
        if reason := prompt.refuses(side):
            return reason
    better, worse = prompt.number(pair.better), prompt.number(pair.worse)
    if not pair.tie:
        prompt.choices.append(Choice(better, worse, pair.weight))
    prompt.opinions += [
        Opinion(better, not pair.both_bad, pair.weight),
        Opinion(worse, pair.tie and not pair.both_bad, pair.weight),
    ]
    return None


def _add_verdict(prompt: _Prompt, verdict: Verdict) -> str | None:
    """Likewise."""
    answer = Answered(verdict.answer)
    reason = prompt.refuses(answer)
    if reason is None:
        prompt.opinions.append(Opinion(prompt.number(answer), verdict.good))
    return reason


def labelled_pairs(store: LabelStore, *, round_id: str | None = None) -> list[Pair]:
    """Every standing training comparison of people and simulated raters, in the order of their submission; of all
    rounds where `round_id` is None.
    """
    samples: dict[str, dict[str, Sample]] = {}
    pairs = []
    for judged in store.preferences(purpose="train", round_id=round_id):
        if not judged.preference.tiers:  # an abstention is no tie
            continue
        if judged.round_id not in samples:
            samples[judged.round_id] = {s.id: s for s in store.samples(round_id=judged.round_id)}
        sides = [_sampled(samples[judged.round_id][source]) for source in judged.comparison.sources]
        decided = list(judged.preference.pairs())
        for better, worse in decided or [(0, 1)]:
            pairs.append(
                Pair(
                    prompt_id=judged.prompt_id,
                    prompt=judged.comparison.prompt,
                    better=sides[better],
                    worse=sides[worse],
                    rater=judged.preference.rater_id,
                    rater_kind=judged.rater_kind,
                    source="labels",
                    tie=not decided,
                    both_bad=judged.preference.both_bad,
                    strength=judged.preference.strength or 1,
                    weight=judged.preference.weight,
                )
            )
    return pairs


def _sampled(sample: Sample) -> Answered:
    return Answered(sample.text, sample.token_ids, sample.checkpoint)


def _is_text(answer: Sequence[Message]) -> bool:
    return len(answer) == 1 and not answer[0].tool_calls


def _is_judged(example: Example) -> bool:
    return not example.rejected and _is_text(example.completion) and isinstance(example.metadata.get("label"), bool)


def _file_pair(example: Example, source: Path) -> Pair:
    return Pair(
        prompt_id=_name(example.prompt),
        prompt=example.prompt,
        better=Answered(example.completion[0].content),
        worse=Answered(example.rejected[0].content),
        rater=source.name,
        rater_kind="human",
        source=source.name,
    )


def _verdict(example: Example) -> Verdict:
    return Verdict(_name(example.prompt), example.prompt, example.completion[0].content, example.metadata["label"])


def _name(prompt: Conversation) -> str:
    """The same for the same prompt, whatever row it stands in."""
    return content_id([(m.role, m.content) for m in prompt.messages])


def _short(conversation: Conversation) -> str:
    text = conversation.messages[-1].content
    return text if len(text) <= 60 else text[:57] + "..."


def write_compared(compared: Iterable[Compared]) -> str:
    """One JSON object a line, as `read_compared` takes it."""
    return "".join(json.dumps(asdict(c)) + "\n" for c in compared)


def read_compared(path: Path) -> list[Compared]:
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [
        Compared(
            tuple(row["prompt"]),
            tuple(tuple(answer) for answer in row["answers"]),
            tuple(Choice(*choice) for choice in row["choices"]),
            tuple(Opinion(*opinion) for opinion in row["opinions"]),
            row["question"],
        )
        for row in rows
    ]
