"""A recipe's mixture of pairs: the workspace's own labels and other people's files, read and checked in one go."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from postgrad.config.pairs import PairsConfig
from postgrad.data.mixture import normalise, split_of
from postgrad.errors import ConfigError, DataError
from postgrad.feedback.pair_checks import Oddity, check_pairs, unreadable_rows
from postgrad.feedback.pair_files import read_pair_file
from postgrad.feedback.pair_labels import LABELS, read_label_pairs
from postgrad.feedback.pairs import Found, Label, Pair, SomeLabel, first_words, with_system
from postgrad.feedback.store import LabelStore


@dataclass(frozen=True)
class PairData:
    labels: list[Label]
    """Pairs, and answers that were judged alone."""
    oddities: list[Oddity]
    """Everything that was odd, whether or not it was left in."""
    sources: list[dict[str, Any]]
    """How many pairs each source had, how many its own filter left out, and its weight."""

    @property
    def pairs(self) -> list[Pair]:
        return [label for label in self.labels if isinstance(label, Pair)]


def is_decided(label: Label) -> bool:
    """Whether it says which of two answers is better."""
    return isinstance(label, Pair) and not label.tie


def split_labels(
    labels: Sequence[SomeLabel], validation_share: float, *, teaches: Callable[[Label], bool] = is_decided
) -> tuple[list[SomeLabel], list[SomeLabel]]:
    """(training, validation) by the first message of the prompt: the same in every run and mixture.

    A part in which nothing `teaches` takes the last of the other's first messages, where that has several.
    """
    shares = {"train": 1 - validation_share, "validation": validation_share}
    parts: dict[str, dict[str, list[SomeLabel]]] = {"train": {}, "validation": {}}
    for label in labels:
        words = normalise(first_words(label.prompt))
        parts[split_of(words, shares, "reward")].setdefault(words, []).append(label)
    useful = {name: [w for w, about in part.items() if any(map(teaches, about))] for name, part in parts.items()}
    for needy, rich in (("validation", "train"), ("train", "validation")):
        if not useful[needy] and len(useful[rich]) > 1:
            words = useful[rich][-1]
            parts[needy][words] = parts[rich].pop(words)
    train, validation = ([label for about in part.values() for label in about] for part in parts.values())
    return train, validation


def source_paths(cfg: PairsConfig, folder: Path) -> list[Path]:
    """The files of the mixture.

    Raises:
        ConfigError: one does not exist.
    """
    paths = [folder / source.path for source in cfg.sources if source.path]
    for path in paths:
        if not path.is_file():
            raise ConfigError(f"'data.sources': {str(path)!r} does not exist; correct its path")
    if len({path.name for path in paths}) < len(paths):
        raise ConfigError("'data.sources': two files have the same name, which tables tell them by; rename one")
    return paths


def read_pairs(cfg: PairsConfig, folder: Path, store: LabelStore | None, *, checkpoints: Collection[str]) -> PairData:
    """All sources of a recipe.

    Args:
        cfg: the recipe's `data`.
        folder: where relative paths begin.
        store: of the workspace's labels; None where no source asks for them.
        checkpoints: SHA-256 of all weights that the workspace holds.

    Raises:
        DataError: rows that are no pairs, a source without any, or odd pairs on which the recipe says to stop.
        ConfigError: a file does not exist.
        StoreError: the store cannot be read.
    """
    source_paths(cfg, folder)
    everything: list[Found] = []
    sources = []
    unreadable: dict[str, list[str]] = {}
    for source in cfg.sources:
        name, left_out = Path(source.path).name or LABELS, 0
        if source.format == "labels":
            assert store is not None, "a source asks for the workspace's labels"
            found = [
                replace(f, label=replace(f.label, weight=f.label.weight * source.weight))
                for f in read_label_pairs(store, source)
            ]
        else:
            found, left_out, bad = read_pair_file(folder / source.path, source, stop=cfg.odd.unreadable == "stop")
            unreadable[name] = bad
        if not found:
            raise DataError(f"source {name!r} has no pair to learn from; label some, widen its filter, or remove it")
        everything += [replace(f, label=with_system(f.label, cfg.system)) for f in found]
        sources.append({"source": name, "pairs": len(found), "left_out": left_out, "weight": source.weight})
    labels, oddities = check_pairs(everything, cfg.odd, checkpoints=checkpoints)
    return PairData(labels, [unreadable_rows(unreadable, cfg.odd), *oddities], sources)
