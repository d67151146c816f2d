"""Tokens to text that can be shown at once: never half a character, never the start of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence


class TextStream:
    """The visible text of one answer, a piece at a time; the pieces add up to `Completion.text`.

    Args:
        decode: token ids to text, bytes that are not UTF-8 as U+FFFD.
        stop: strings that end the answer and are not part of it.
        hidden: ids that end a turn.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], *, stop: Sequence[str] = (), hidden: Collection[int] = ()
    ) -> None:
        self._decode = decode
        self._stop = stop
        self._hidden = frozenset(hidden)
        # A tokenizer may decode a token by its neighbours, so each piece is what a window grows by.
        self._window: list[int] = []
        self._num_read = 0
        self._held = ""
        self._shown = 0
        self._stopped = False

    def push(self, token: int) -> str:
        """The text that this token makes certain."""
        if self._stopped or token in self._hidden:
            return ""
        self._window.append(token)
        before = self._decode(self._window[: self._num_read])
        now = self._decode(self._window)
        if now.endswith("\ufffd") or len(now) <= len(before):
            return ""
        self._window = self._window[self._num_read :]
        self._num_read = len(self._window)
        self._held += now[len(before) :]
        return self._release()

    def finish(self, text: str) -> str:
        """What is left of `text`, the whole answer, after everything `push` gave out."""
        return text[self._shown :]

    def _release(self) -> str:
        cuts = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        self._stopped = bool(cuts)
        end = min(cuts) if cuts else len(self._held) - self._num_waiting()
        piece, self._held = self._held[:end], self._held[end:]
        self._shown += len(piece)
        return piece

    def _num_waiting(self) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stop):
                return size
        return 0
