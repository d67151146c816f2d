"""Render conversations through a chat template, knowing which tokens the model itself must produce.

Chat templates seldom mark their assistant turns, so turns are found by rendering: the text of the messages before
an assistant turn, with the generation prompt, is what the model has read when it starts to write. Text is tokenised
in segments cut exactly there, so that what a turn was trained on is what it is sampled from, and the observation of
one turn is a prefix of the next one's.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import TemplateError

from postgrad.errors import DataError
from postgrad.types import Conversation, Example, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Turns = Literal["all", "last", "named"]

DEFAULT_TEMPLATE = (
    "{{ bos_token | default('') }}"
    "{%- for message in messages -%}"
    "{{ '### ' ~ message['role'] | capitalize ~ '\\n' ~ message['content'] ~ eos_token ~ '\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt %}{{ '### Assistant\\n' }}{% endif -%}"
)
"""For base models: plain headers. Every turn ends with EOS, which no content may hold, so no text forges a turn."""

_DATE = {
    **{"%d": "26", "%m": "07", "%b": "Jul", "%B": "July", "%y": "24", "%Y": "2024", "%a": "Fri", "%A": "Friday"},
    **{"%H": "00", "%M": "00", "%S": "00"},
}
_FIXED_DATE = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f".replace('{code}', '{text}')" for code, text in _DATE.items())
    + " }}{% endmacro +%}"
)
"""Put before a template that asks for today's date: training data must not change overnight."""

_PROBE = (
    Message("user", "first-question"),
    Message("assistant", "first-answer"),
    Message("user", "second-question"),
    Message("assistant", "second-answer"),
)


class Renderer:
    """Conversation <-> token ids, for one tokenizer and one chat template.

    `stop_ids` are all tokens that end a turn: EOS, the template's own end-of-turn token (found by rendering), and
    those given. Padding plays no part, so a pad token that is also EOS is harmless.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, *, template: str | None = None, stop_ids: Iterable[int] = ()
    ) -> None:
        """Choose `template`, else the tokenizer's own, else `DEFAULT_TEMPLATE`, and check that it can be trained.

        Args:
            tokenizer: with EOS; never changed here.
            template: Jinja source.
            stop_ids: further ids that end a turn, as in a model's generation_config.

        Raises:
            DataError: the template is not valid, ignores `add_generation_prompt`, or ends turns with no special token.
        """
        self.tokenizer = tokenizer
        if tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no EOS token; name one as eos_token in tokenizer_config.json")
        self.template: str = _with_fixed_date(template or _own_template(tokenizer))
        """To be saved with every checkpoint; asks no clock."""
        special = {i: t.content for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        self._special = re.compile(
            "|".join(re.escape(text) for text in sorted(special.values(), key=len, reverse=True))
        )
        self._opening, self._closing, end_id = self._discover({text: i for i, text in special.items()})
        self.stop_ids: tuple[int, ...] = tuple(sorted({tokenizer.eos_token_id, end_id, *stop_ids}))
        """Any of them ends a turn."""
        self.end_id: int = end_id
        """The one that this template writes."""
        self._check_segments()

    def render(
        self, conversation: Conversation, *, train: Collection[int] | None = None, name: str = "this conversation"
    ) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """Token ids and their loss mask: assistant turns with their end token, never a header or another role.

        Args:
            conversation: whole, as the template would show it without a generation prompt.
            train: indices of the assistant messages to train on; None is all of them.
            name: what to call the row in an error.

        Raises:
            DataError: nothing to train on, text that would forge special tokens, or a template that refuses it.
        """
        turns = _assistant_turns(conversation.messages)
        trained = set(turns if train is None else train)
        assert trained <= set(turns), "only assistant turns can be trained"
        if not trained:
            raise DataError(f"{name}: no assistant turn to train on; add one, or remove the row")
        ids: list[int] = []
        mask: list[bool] = []
        for turn, segment in self._segments(conversation, name, generate=False):
            tokens = self._encode(segment)
            num_trained = 0
            if turn in trained:
                ends = (t for t, token in enumerate(tokens) if token in self.stop_ids)
                num_trained = 1 + next(ends, -1)
                if num_trained == 0:
                    raise DataError(
                        f"{name}: the chat template does not end message {turn + 1} with a token that stops generation"
                    )
            ids += tokens
            mask += [t < num_trained for t in range(len(tokens))]
        return tuple(ids), tuple(mask)

    def render_example(self, example: Example, *, turns: Turns = "all") -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """As `render`, trained on the completion's assistant turns, or on the prompt's where there is no completion.

        Args:
            example: a demonstration.
            turns: of those "all", the "last" one, or the "named": numbers, from 1, under `train` in its metadata.

        Raises:
            DataError: as `render`, and where "named" turns are not named.
        """
        whole = Conversation((*example.prompt.messages, *example.completion), example.prompt.tools)
        first = len(example.prompt.messages) if example.completion else 0
        own = [turn for turn in _assistant_turns(whole.messages) if turn >= first]
        name = f"row {example.id!r}"
        if turns == "last":
            own = own[-1:]
        elif turns == "named":
            numbers = example.metadata.get("train")
            known = range(1, len(own) + 1)
            if not isinstance(numbers, list) or not numbers or not all(type(n) is int and n in known for n in numbers):
                raise DataError(f"{name}: 'train' must list some of its assistant turns, 1 to {len(own)}")
            own = [own[number - 1] for number in sorted(set(numbers))]
        return self.render(whole, train=own, name=name)

    def render_prompt(self, conversation: Conversation, *, name: str = "this conversation") -> tuple[int, ...]:
        """Token ids up to where the assistant starts to write.

        The same as transformers' `apply_chat_template(add_generation_prompt=True)` with `self.template`, unless the
        tokenizer would merge the first characters of an earlier answer into its header (a line break, mostly): they
        are kept apart, as they were when the answer was sampled.
        """
        return tuple(
            token for _, segment in self._segments(conversation, name, generate=True) for token in self._encode(segment)
        )

    def render_answer(self, text: str, *, name: str = "this answer") -> tuple[int, ...]:
        """Token ids of an answer with its end token, as they would be sampled after `render_prompt`.

        Raises:
            DataError: text that would forge special tokens.
        """
        if forged := self._special.search(text):
            raise DataError(f"{name} contains {forged.group()!r}, which the tokenizer reads as a control token")
        return (*self._encode(self._opening + text + self._closing), self.end_id)

    def parse(self, ids: Sequence[int]) -> Message:
        """The assistant message in sampled tokens: text up to the first end token, otherwise exactly as sampled."""
        end = next((t for t, token in enumerate(ids) if token in self.stop_ids), None)
        text = self.decode(ids[:end])
        if end is not None:
            text = text.removesuffix(self._closing)
        return Message("assistant", text.removeprefix(self._opening))

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens; bytes that are not UTF-8 show as U+FFFD."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides the ids: template, tokenizer, special tokens, stop ids."""
        special = {name: str(token) for name, token in self.tokenizer.special_tokens_map.items()}
        return _digest([self.template, self._backend, special, self.stop_ids])

    @cached_property
    def answers_fingerprint(self) -> str:
        """SHA-256 of what decides the ids of an answer, whatever stands before it: tokenizer and end of turn."""
        return _digest([self._backend, self.end_id])

    @cached_property
    def _backend(self) -> dict[str, Any]:
        model: dict[str, Any] = json.loads(self.tokenizer.backend_tokenizer.to_str())
        for transient in ("truncation", "padding"):
            model.pop(transient, None)
        return model

    def _discover(self, special: dict[str, int]) -> tuple[str, str, int]:
        """What the template writes around an answer: text after the generation prompt, text and id of the end."""
        segments = self._segments(Conversation(_PROBE), "the chat template", generate=False)
        opening, answer, rest = segments[-1][1].partition(_PROBE[-1].content)
        if not answer or self._special.search(opening):
            raise DataError(
                "the chat template ignores add_generation_prompt or does not show answers as they are; "
                "give the model a template whose generation prompt opens the assistant's turn"
            )
        end = self._special.search(rest)
        if end is None:
            raise DataError(
                "the chat template ends assistant turns with no special token, so the model could never learn to stop; "
                "add eos_token after the content of assistant messages"
            )
        return opening, rest[: end.start()], special[end.group()]

    def _check_segments(self) -> None:
        probe = Conversation(_PROBE)
        if self.render(probe)[0] != tuple(self._encode(self._text(probe, _PROBE, "the chat template", False))):
            raise DataError(
                "this tokenizer splits text differently at the start of an answer than inside the chat template; "
                "use a template whose generation prompt ends in a special token or a line break"
            )

    def _segments(self, conversation: Conversation, name: str, *, generate: bool) -> list[tuple[int | None, str]]:
        """(message index, text from the start of that assistant turn to the next one); None for what comes first."""
        messages = conversation.messages
        self._check_content(conversation, name)
        text = self._text(conversation, messages, name, generate)
        starts: list[tuple[int | None, int]] = [(None, 0)]
        for turn in _assistant_turns(messages):
            read = self._text(conversation, messages[:turn], name, True)
            if not text.startswith(read):
                raise DataError(
                    f"{name}: the chat template shows message {turn + 1} after a different text than it was prompted "
                    "with, so it cannot be trained; use a template that leaves earlier messages as they are"
                )
            starts.append((turn, len(read)))
        ends = [start for _, start in starts[1:]] + [len(text)]
        return [(turn, text[start:end]) for (turn, start), end in zip(starts, ends, strict=True)]

    def _check_content(self, conversation: Conversation, name: str) -> None:
        messages = conversation.messages
        if not messages or messages[0].role == "assistant":
            raise DataError(f"{name}: a conversation starts with a system or user message")
        if conversation.tools and "tools" not in self.template:
            raise DataError(f"{name}: the chat template has no place for tools; use one that shows `tools`")
        for number, message in enumerate(messages, 1):
            if message.tool_calls and "tool_calls" not in self.template:
                raise DataError(f"{name}: the chat template would drop the tool calls of message {number}")
            texts = [message.content, *(text for call in message.tool_calls for text in (call.name, call.arguments))]
            if not all(_is_unicode(text) for text in texts):
                raise DataError(f"{name}: message {number} holds half a surrogate pair, which is no text; remove it")
            forged = next((found for text in texts if (found := self._special.search(text))), None)
            if forged:
                raise DataError(
                    f"{name}: message {number} contains {forged.group()!r}, which the tokenizer reads as a control "
                    "token; remove it or spell it differently"
                )
        forged = self._special.search(json.dumps(conversation.tools, ensure_ascii=False, default=dict))
        if forged:
            raise DataError(f"{name}: a tool's description contains the control token {forged.group()!r}; remove it")

    def _text(self, conversation: Conversation, messages: Sequence[Message], name: str, generate: bool) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [_as_dict(message) for message in messages],
                    tools=[dict(tool) for tool in conversation.tools] or None,
                    chat_template=self.template,
                    add_generation_prompt=generate,
                    tokenize=False,
                )
            )
        except (TemplateError, TypeError) as e:
            raise DataError(
                f"{name}: the chat template refuses it ({e}); change the roles or their order, or use another template"
            ) from None

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False, verbose=False))


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def check_fits(ids: Sequence[int], limit: int, name: str) -> None:
    """Raise unless `ids` fit into `limit` tokens.

    Raises:
        DataError: names the row, its length and the limit.
    """
    if len(ids) > limit:
        raise DataError(f"{name}: {len(ids)} tokens do not fit into {limit}; shorten it or take a longer context")


def _own_template(tokenizer: PreTrainedTokenizerFast) -> str:
    own = tokenizer.chat_template
    if isinstance(own, dict):
        own = own.get("default")
        if own is None:
            raise DataError("the tokenizer has several chat templates and none named 'default'; choose one")
    return own or DEFAULT_TEMPLATE


def _with_fixed_date(template: str) -> str:
    return _FIXED_DATE + template if "strftime_now" in template and _FIXED_DATE not in template else template


def _assistant_turns(messages: Sequence[Message]) -> list[int]:
    return [i for i, message in enumerate(messages) if message.role == "assistant"]


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _as_dict(message: Message) -> dict[str, Any]:
    """The form that templates expect: tool arguments as an object wherever they are one."""
    shown: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        shown["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _arguments(call.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        shown["tool_call_id"] = message.tool_call_id
    return shown


def _arguments(raw: str) -> Any:
    try:
        parsed = json.loads(raw)
    except ValueError:
        return raw
    return parsed if isinstance(parsed, dict) else raw
