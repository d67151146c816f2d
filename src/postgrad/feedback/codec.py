"""Rows of the label store to records, and back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from postgrad.db.tables import ComparisonRow, LabelRow, PromptRow, SampleRow, TaskRow
from postgrad.feedback.records import Judged, Sample, Submission, content_id
from postgrad.feedback.values import check_value
from postgrad.types import Comparison, Conversation, Message, Preference, SamplingParams, ToolCall


def plain(value: Mapping[str, Any]) -> Any:
    """Equal to what JSON gives back: lists, no tuples."""
    return json.loads(json.dumps(dict(value)))


def conversation_to_json(conversation: Conversation) -> dict[str, Any]:
    """Defaults are left out."""
    messages = []
    for m in conversation.messages:
        message: dict[str, Any] = {"role": m.role, "content": m.content}
        if m.tool_calls:
            message["tool_calls"] = [asdict(call) for call in m.tool_calls]
        if m.tool_call_id is not None:
            message["tool_call_id"] = m.tool_call_id
        messages.append(message)
    return {"messages": messages, "tools": [plain(tool) for tool in conversation.tools]}


def conversation_from_json(stored: dict[str, Any]) -> Conversation:
    messages = tuple(
        Message(
            role=m["role"],
            content=m["content"],
            tool_calls=tuple(ToolCall(**call) for call in m.get("tool_calls", ())),
            tool_call_id=m.get("tool_call_id"),
        )
        for m in stored["messages"]
    )
    return Conversation(messages, tuple(stored["tools"]))


def sample_to_row(sample: Sample) -> dict[str, Any]:
    return {
        "prompt_id": sample.prompt_id,
        "round_id": sample.round_id,
        "stage": sample.stage,
        "checkpoint": sample.checkpoint,
        "policy_version": sample.policy_version,
        "params": plain(asdict(sample.params)),
        "seed": str(sample.seed),
        "text": sample.text,
        "token_ids": list(sample.token_ids),
        "finish_reason": sample.finish_reason,
    }


def sample_from_row(row: SampleRow) -> Sample:
    params: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.params.items()}
    finish_reason: Any = row.finish_reason
    return Sample(
        prompt_id=row.prompt_id,
        round_id=row.round_id,
        stage=row.stage,
        checkpoint=row.checkpoint,
        policy_version=row.policy_version,
        params=SamplingParams(**params),
        seed=int(row.seed),
        text=row.text,
        token_ids=tuple(row.token_ids),
        finish_reason=finish_reason,
    )


def submission_to_row(submission: Submission, *, prompt_id: str, num_answers: int) -> dict[str, Any]:
    p = submission.preference
    kind = "compare" if num_answers == 2 else "rank"
    abstained = "" if p.tiers else submission.reason or p.rationale
    value = {"tiers": p.tiers, "strength": p.strength, "both_bad": p.both_bad, "cannot_judge": abstained}
    return {
        "kind": kind,
        "prompt_id": prompt_id,
        "comparison_id": p.comparison_id,
        "rater_id": p.rater_id,
        "client_key": submission.key,
        "value": check_value(kind, value, num_answers=num_answers),
        "display_order": ",".join(map(str, submission.order)),
        "rationale": p.rationale,
        "milliseconds": p.milliseconds,
        "weight": p.weight,
    }


def preference(row: LabelRow) -> Preference:
    assert row.comparison_id is not None
    return Preference(
        comparison_id=row.comparison_id,
        rater_id=row.rater_id,
        tiers=tuple(tuple(tier) for tier in row.value["tiers"]),
        strength=row.value["strength"],
        rationale=row.rationale or row.value["cannot_judge"],
        milliseconds=row.milliseconds,
        weight=row.weight,
        both_bad=row.value["both_bad"],
    )


def comparison(comparison_id: str, prompt: PromptRow, samples: Sequence[SampleRow]) -> Comparison:
    return Comparison(
        id=comparison_id,
        prompt=conversation_from_json(prompt.conversation),
        answers=tuple(s.text for s in samples),
        sources=tuple(s.id for s in samples),
    )


def judged(
    row: LabelRow, asked: Comparison, about: ComparisonRow, prompt: PromptRow, stages: tuple[str, ...], kind: Any
) -> Judged:
    purpose: Any = about.purpose
    return Judged(
        preference=preference(row),
        comparison=asked,
        order=tuple(int(i) for i in row.display_order.split(",")),
        prompt_id=about.prompt_id,
        round_id=about.round_id,
        purpose=purpose,
        rater_kind=kind,
        created_at=row.created_at,
        stages=stages,
        details=prompt.details,
    )


def judged_turns(
    row: LabelRow, task: TaskRow, prompt: PromptRow, samples: Mapping[str, SampleRow], kind: Any
) -> Iterator[Judged]:
    """Turns of a conversation in which there was something to choose; each prompt includes the turns before."""
    start, _ = opening(conversation_from_json(prompt.conversation))
    said = start.messages
    for i, turn in enumerate(row.value["turns"]):
        said = (*said, Message("user", turn["message"]))
        candidates = [samples[sample_id] for sample_id in turn["candidates"]]
        chosen = turn["chosen"]
        others = tuple(j for j in range(len(candidates)) if j != chosen)
        asked = content_id("turn", row.id, i)
        if others:
            yield Judged(
                preference=Preference(
                    comparison_id=asked,
                    rater_id=row.rater_id,
                    tiers=((chosen,), others),
                    strength=turn["strength"],
                    rationale=row.rationale,
                    weight=row.weight,
                ),
                comparison=Comparison(
                    id=asked,
                    prompt=Conversation(said, start.tools),
                    answers=tuple(s.text for s in candidates),
                    sources=tuple(turn["candidates"]),
                ),
                order=tuple(turn["order"]),
                prompt_id=row.prompt_id,
                round_id=task.round_id,
                purpose="train",
                rater_kind=kind,
                created_at=row.created_at,
                stages=tuple(s.stage for s in candidates),
                details=prompt.details,
            )
        said = (*said, Message("assistant", candidates[chosen].text))


def opening(prompt: Conversation) -> tuple[Conversation, str]:
    """What a conversation goes on from, and the message that a prompt suggests to begin with: its own last one."""
    *earlier, last = prompt.messages or (None,)
    if last is None or last.role != "user":
        return prompt, ""
    return Conversation(tuple(earlier), prompt.tools), last.content
