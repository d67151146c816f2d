"""A judge in this process: a checkpoint behind the engine that also samples for training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from postgrad.errors import DataError, EngineError
from postgrad.feedback.judge_prompt import MAX_TOKENS, Verdict, question, read_verdict
from postgrad.feedback.speakers import LocalSpeaker
from postgrad.types import Conversation, Message, SamplingParams

if TYPE_CHECKING:
    from postgrad.protocols import RolloutEngine
    from postgrad.text import Renderer


class LocalJudge:
    """Greedy answers of an engine; questions that are asked at the same time share its forward passes.

    Args:
        engine: of the judge's checkpoint.
        renderer: of the same checkpoint.
        context: most tokens of a question and its answer together.
        model: what the checkpoint is called.
        checkpoint: SHA-256 of it.
        rubric: what makes an answer better.
        seed: of every request.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        renderer: Renderer,
        *,
        context: int,
        model: str,
        checkpoint: str,
        rubric: str,
        seed: int = 0,
    ) -> None:
        params = SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0)
        self._speaker = LocalSpeaker(engine, renderer, context=context, checkpoint=checkpoint, params=params)
        self._rubric, self._seed = rubric, seed
        self.params: Mapping[str, Any] = {
            "model": model,
            "host": "",
            "checkpoint": checkpoint,
            "rubric": rubric,
            "seed": seed,
        }

    async def judge(self, prompt: Conversation, first: str, second: str) -> Verdict:
        """A verdict; an abstention where the question does not fit the model's context or its template."""
        asked = Conversation((Message("user", question(prompt, first, second, rubric=self._rubric)),))
        try:
            answer = await self._speaker.say(asked, seed=self._seed)
        except (DataError, EngineError) as e:
            return Verdict(None, None, str(e))
        return read_verdict(answer.text, whole=answer.finish_reason == "stop")
