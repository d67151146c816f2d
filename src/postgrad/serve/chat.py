"""Talk to a model in the terminal, or through a pipe: one line in, one answer out."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace

from rich.console import Console

from postgrad.errors import PostgradError
from postgrad.protocols import RolloutEngine
from postgrad.serve.stream import TextStream
from postgrad.text import Renderer
from postgrad.types import Completion, Conversation, GenerationRequest, Message, SamplingParams

HELP = """\
/reset          forget the conversation
/system TEXT    set the system message and start anew; without TEXT, remove it
/help           show this
/quit           leave; so does Ctrl-D
Ctrl-C          stop the answer"""
ASK = "\x01\x1b[1;36m\x02you >\x01\x1b[0m\x02 "
"""Bold cyan; what is between \x01 and \x02 has no width for readline, which prints this again when it redraws."""


def chat(
    engine: RolloutEngine,
    renderer: Renderer,
    *,
    context: int,
    params: SamplingParams,
    system: str = "",
    seed: int | None = None,
    console: Console | None = None,
) -> None:
    """Read lines and stream answers until the input ends.

    Args:
        engine: generates.
        renderer: of the same model.
        context: most tokens of a conversation.
        params: `max_tokens` is the most of one answer.
        system: first message of every conversation, if not empty.
        seed: of the first answer; answer i uses seed + i. None is a new one every time.
        console: where answers go.
    """
    session = _Session(engine, renderer, context, params, system, seed, console or Console(highlight=False))
    for line in session.lines():
        if line == "/quit":
            return
        session.handle(line)


class _Session:
    def __init__(
        self,
        engine: RolloutEngine,
        renderer: Renderer,
        context: int,
        params: SamplingParams,
        system: str,
        seed: int | None,
        console: Console,
    ) -> None:
        self.engine = engine
        self.renderer = renderer
        self.context = context
        self.params = params
        self.seed = secrets.randbits(62) if seed is None else seed
        self.console = console
        self.interactive = sys.stdin.isatty()
        self.system = system
        self.messages: list[Message] = []

    def lines(self) -> Iterator[str]:
        """Stripped lines that are not empty."""
        if not self.interactive:
            yield from (line.strip() for line in sys.stdin if line.strip())
            return
        prompt = "you > "
        with contextlib.suppress(ImportError):  # importing it gives `input` line editing and history
            import readline  # noqa: F401

            prompt = prompt if self.console.is_dumb_terminal or self.console.no_color else ASK
        self.say("Type a message, or /help.")
        while True:
            try:
                line = input(prompt).strip()
            except EOFError:
                self.console.print()
                return
            except KeyboardInterrupt:
                self.console.print()
                continue
            if line:
                yield line

    def handle(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        if not command.startswith("/"):
            self.answer(line)
        elif command == "/help":
            self.say(HELP)
        elif command == "/reset":
            self.messages = []
            self.say("The conversation is forgotten.")
        elif command == "/system":
            self.system, self.messages = rest.strip(), []
            self.say("The system message is set." if self.system else "There is no system message now.")
        else:
            self.say(f"There is no command {command}; /help lists them.")

    def answer(self, text: str) -> None:
        """Extend the conversation by a question and its answer; neither stays if there is no answer."""
        asked = [*self.messages, Message("user", text)]
        first = [Message("system", self.system)] if self.system else []
        try:
            prompt_ids = self.renderer.render_prompt(Conversation((*first, *asked)), name="the conversation")
            room = self.context - len(prompt_ids)
            if room < 1:
                self.say(f"The conversation fills the context of {self.context} tokens; /reset starts a new one.")
                return
            params = replace(self.params, max_tokens=min(self.params.max_tokens, room))
            completion = self.generate(GenerationRequest(prompt_ids, params, self.seed))
        except PostgradError as e:
            self.say(f"No answer: {e}")
            return
        self.seed = (self.seed + 1) % 2**63
        if completion.text:
            self.messages = [*asked, Message("assistant", completion.text)]
        if completion.finish_reason != "stop":
            why = "stopped" if completion.finish_reason == "cancelled" else f"cut at {params.max_tokens} tokens"
            self.say(f"[{why}]")

    def generate(self, request: GenerationRequest) -> Completion:
        stream = TextStream(self.renderer.decode, stop=request.params.stop, hidden=self.renderer.stop_ids)
        interrupted = threading.Event()

        def on_token(index: int, token: int) -> bool:
            self.show(stream.push(token))
            return not interrupted.is_set()

        if self.interactive:
            self.console.print("[bold green]model >[/] ", end="")
        before = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
        try:
            (completion,) = asyncio.run(self.engine.generate([request], on_token))
        finally:
            signal.signal(signal.SIGINT, before)
        self.show(stream.finish(completion.text) + "\n")
        if interrupted.is_set() and not self.interactive:
            raise KeyboardInterrupt
        return completion

    def show(self, text: str) -> None:
        """Print a piece of an answer; a model's control characters must not steer the terminal."""
        safe = "".join(c for c in text if c.isprintable() or c in "\n\t")
        if safe:
            self.console.out(safe, end="", highlight=False)
            self.console.file.flush()

    def say(self, text: str) -> None:
        """A remark that is not the model's: not part of a pipe's output."""
        console = self.console if self.interactive else Console(stderr=True)
        console.print(text, style="dim", markup=False, highlight=False, soft_wrap=True)
