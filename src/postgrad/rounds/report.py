"""One self-contained page about a round: for the person who signs the release, who needs evidence.

No script, no request: styles, drawings and samples are in the file, and a content security policy forbids the rest.
Whatever the round has not reached is said to be missing; whatever models or people wrote is shown as inert text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from postgrad.errors import DataError
from postgrad.evals.overoptimisation import CURVE, peak
from postgrad.metrics import METRIC_KEYS, TITLES
from postgrad.rounds.exam_labels import labelled_points
from postgrad.rounds.manifest import Manifest
from postgrad.rounds.numbers import (
    format_bytes,
    format_count,
    format_duration,
    format_findings,
    format_number,
    format_percent,
    format_signed,
)
from postgrad.rounds.report_certificate import certificate_view
from postgrad.rounds.report_charts import distance_chart, line_chart, reliability_chart
from postgrad.run import CERTIFICATE, RunDirectory, atomic_write, read_metrics
from postgrad.watch import healthy, is_share

NUM_SAMPLES = 20

_CHARTS: Mapping[str, tuple[int, tuple[str, ...]]] = {
    "pretrain": (4, ("validation/bits_per_byte", "loss/nll", "optim/grad_norm", "time/tokens_per_s")),
    "preference": (
        8,
        (
            "loss/preference", "preference/accuracy", "preference/margin", "preference/chosen_reward",
            "preference/rejected_reward", "preference/chosen_logprob", "preference/kl", "preference/kl_data",
            "optim/grad_norm",
        ),
    ),
    "sft": (3, ("validation/nll", "loss/nll", "optim/grad_norm")),
    "distill": (4, ("teacher/kl", "loss/reverse_kl", "loss/nll", "rollout/completion_tokens", "policy/entropy")),
    "arena": (4, ("heldout/utility", "heldout/win_rate", "heldout/accuracy", "policy/kl_ref")),
    "reward": (1, ("loss/bradley_terry", "reward/accuracy", "optim/grad_norm")),
    "process": (3, ("loss/steps", "reward/accuracy", "optim/grad_norm")),
    "outcome": (3, ("loss/steps", "reward/accuracy", "optim/grad_norm")),
    "rl": (
        6,
        (
            "reward/mean", "policy/kl_ref", "rollout/completion_tokens", "policy/entropy", "rollout/truncated_frac",
            "value/explained_variance", "policy/clip_frac", "optim/grad_norm",
        ),
    ),
}  # fmt: skip
"""Stage, without its number -> how many charts, and which, by preference; those without data are passed over."""


CERTIFIED: Mapping[str, str] = {
    "certificate": "certificate", "process": "process/model", "outcome": "outcome/model"
}  # fmt: skip
"""Stage of a method by itself -> where its certificate is."""


_GOLD_TITLES: Mapping[str, str] = {
    "raters": "What the raters want",
    "ensemble": "What a held-out ensemble says",
    "labels": "How often people prefer it to the SFT policy",
}
"""`exam.gold` -> what its score says."""


class _Summary(dict[str, Any]):
    """A stage's summary; what it does not hold is None, and shown as a dash."""

    def __missing__(self, key: str) -> None:
        return None


def write_report(round_dir: Path) -> Path:
    """Write `round_dir`/report.html from the manifest and the stages' files; unfinished rounds have one too.

    Raises:
        StoreError: there is no manifest, or the disk is full.
        DataError: a stage's file does not parse; the message names it.
    """
    manifest = Manifest.load(round_dir)
    environment = Environment(
        loader=PackageLoader("postgrad.rounds", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(_FILTERS)
    whole = manifest.record.method == "round"
    template, view = ("report.html.jinja", _view) if whole else ("report_method.html.jinja", _method_view)
    page = environment.get_template(template).render(view(manifest))
    path = round_dir / "report.html"
    atomic_write(path, re.sub("[\ud800-\udfff]", "\ufffd", page))  # lone surrogates have no bytes in UTF-8
    return path


def _common_view(manifest: Manifest) -> dict[str, Any]:
    """What the page of every method shows."""
    stages = {stage.name: stage for stage in manifest.record.stages}
    recipe = _read_json(manifest.directory / "recipe.json")
    return {
        "warnings": _warnings(manifest),
        "pairs": next((stage.summary for stage in stages.values() if "odd" in stage.summary), None),
        "round": manifest.record,
        "stages": [(name, stages.get(name)) for name in manifest.stages],
        "recipe_text": json.dumps(recipe, indent=2, ensure_ascii=False),
        "changes": _recipe_changes(manifest, recipe),
        "total": _total(manifest),
        "longest": max((stage.seconds for stage in manifest.record.stages), default=0.0) or 1.0,
    }


def _method_view(manifest: Manifest) -> dict[str, Any]:
    """A method by itself: what its stages say of themselves, whatever that is."""
    record = manifest.record
    done = [stage for stage in record.stages if stage.status == "done"]
    failed = next((stage for stage in record.stages if stage.status == "failed"), None)
    if failed is not None:
        headline = ("fail", "Stopped", f"This run stopped in stage {failed.name}: {failed.error}")
    elif record.status == "done":
        headline = ("pass", "Done", f"Recipe {record.recipe}: all stages of method {record.method} are done.")
    else:
        headline = ("investigate", "Unfinished", "This run has not reached its end.")
    reliability = []
    for stage in done:
        if (rows := stage.summary.get("calibration")) and stage.name not in CERTIFIED:
            label = "The likeliest outcome"
            reliability.append((label, reliability_chart(rows, label=f"Reliability: {label.lower()}")))
        if rows := stage.summary.get("all_calibration"):
            label = "All outcomes, logarithmic"
            reliability.append((label, reliability_chart(rows, label=f"Reliability: {label.lower()}", log=True)))
    samples = [manifest.stage_directory(stage.name) / "samples.jsonl" for stage in done]
    return _common_view(manifest) | {
        "headline": headline,
        "findings": [(stage.name, format_findings(stage.summary)) for stage in done],
        "charts": [chart for name in manifest.stages for chart in _charts(manifest, name)],
        "reliability": reliability,
        "certificates": [
            (name, view)
            for name, where in CERTIFIED.items()
            if name in manifest.stages and (view := _certificate(manifest, where))
        ],
        "samples": [
            {**row, "prompt": _printable(row["prompt"]), "text": _printable(row["text"])}
            for path in samples
            if path.exists()
            for row in _read_lines(path)[:NUM_SAMPLES]
        ],
    }


def _view(manifest: Manifest) -> dict[str, Any]:
    stages = {stage.name: stage for stage in manifest.record.stages}
    done = {name: _Summary(stage.summary) for name, stage in stages.items() if stage.status == "done"}
    recipe = _read_json(manifest.directory / "recipe.json")
    arena = _read_json(manifest.stage_directory("arena") / "arena.json") if "arena" in done else None
    gate = _read_json(manifest.stage_directory("gate") / "gate.json") if "gate" in done else None
    answers = _read_lines(manifest.stage_directory("arena") / "answers.jsonl") if "arena" in done else []
    labels = {"initial": "Initial", "released": "Released", "sft": "SFT", "rl": recipe["rl"]["algorithm"].upper()}
    return _common_view(manifest) | {
        "stage": stages,
        "done": done,
        "labels": labels,
        "asks_a_person": recipe.get("asks_a_person", False),
        "gate": gate,
        "arena": arena,
        "elo_scale": _elo_scale(arena) if arena else None,
        "measures": _measures(arena) if arena else [],
        "headline": _headline(manifest, gate, labels),
        "pair": _pair(arena, "rl", "initial") if arena else None,
        "charts": {name: _charts(manifest, name) for name in manifest.stages if name in _CHARTS},
        "distance": _distance(manifest) if "rl" in done else None,
        "certificate": _certificate(manifest, "reward/model"),
        "samples": _samples(answers),
        "num_answers": len(answers),
        "num_samples": NUM_SAMPLES,
    }


def _headline(manifest: Manifest, gate: Mapping[str, Any] | None, labels: Mapping[str, str]) -> tuple[str, str, str]:
    """(CSS class, badge, sentence)."""
    if gate is None:
        failed = next((stage.name for stage in manifest.record.stages if stage.status == "failed"), None)
        if failed is not None:
            return "fail", "Stopped", f"This round stopped in stage {failed}."
        return "investigate", "Unfinished", "This round has no verdict yet."
    candidate = labels.get(gate["candidate"], gate["candidate"])
    incumbent = f"the {gate['incumbent']} policy"
    sentences = {
        "pass": f"{candidate} beats {incumbent} and may be released.",
        "fail": f"{candidate} may not replace {incumbent}.",
        "investigate": f"{candidate} against {incumbent}: a person must decide.",
    }
    return gate["verdict"], f"Gate: {gate['verdict']}", sentences[gate["verdict"]]


def _recipe_changes(manifest: Manifest, recipe: Mapping[str, Any]) -> dict[str, Any] | None:
    """What differs from the recipe of the round before; None where this is the first."""
    rounds = manifest.directory.resolve().parent.glob("[0-9]*-*/recipe.json")
    earlier = sorted(path for path in rounds if path.parent.name < manifest.record.id)
    if not earlier:
        return None
    then, now = _flatten(_read_json(earlier[-1])), _flatten(recipe)
    keys = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    return {"since": earlier[-1].parent.name, "rows": [(key, then.get(key), now.get(key)) for key in keys]}


def _flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _charts(manifest: Manifest, stage: str) -> list[dict[str, Any]]:
    rows = read_metrics(manifest.stage_directory(stage) / "metrics.jsonl")
    most, keys = _CHARTS.get(stage.partition("-")[0], (0, ()))
    charts: list[dict[str, Any]] = []
    for key in keys:
        points = [(row["step"], row[key]) for row in rows if key in row]
        if not points or len(charts) == most:
            continue
        steps, values = zip(*points, strict=True)
        metric = METRIC_KEYS[key]
        share = is_share(key)
        title = f"{TITLES[key]} ({stage})" if "-" in stage else TITLES[key]
        over = "round" if stage == "arena" else "step"
        label = f"{TITLES[key]} over {len(steps)} {over}s ({stage})"
        charts.append(
            {
                "title": title,
                "meaning": metric.meaning,
                "first": values[0],
                "last": values[-1],
                "share": share,
                "healthy": healthy(key, values[-1]),
                "drawing": line_chart(steps, values, over=over, label=label, share=share),
            }
        )
    return charts


def _warnings(manifest: Manifest) -> list[dict[str, Any]] | None:
    """Every warning given while a stage trained, oldest first; None where none has trained."""
    runs = [(stage.name, RunDirectory(manifest.stage_directory(stage.name))) for stage in manifest.record.stages]
    trained = [(name, run) for name, run in runs if run.metrics_path.exists()]
    rows = [
        {**row, "stage": name, "title": TITLES.get(row["metric"], row["metric"])}
        for name, run in trained
        for row in run.read_warnings()
    ]
    return rows if trained else None


def _certificate(manifest: Manifest, where: str) -> dict[str, Any] | None:
    """Of the run's reward model; None where it has none yet."""
    path = manifest.directory / "stages" / where / CERTIFICATE
    return certificate_view(_read_json(path)) if path.exists() else None


def _distance(manifest: Manifest) -> dict[str, Any] | None:
    """Proxy and gold score of the examinations, and drawings of both against the distance from the start.

    Where people's labels are the gold score, those count that are there by now.
    """
    stage = manifest.stage_directory("rl")
    if not (stage / CURVE).exists():
        return None
    found = {"gold": "raters", **_read_json(stage / CURVE)}
    if found["gold"] == "labels":
        found["rl"] = labelled_points(stage, manifest.directory.resolve().parents[1], round_id=manifest.record.id)
    drawings = []
    for key, title in (("proxy", "What the reward model says"), ("gold", _GOLD_TITLES[found["gold"]])):
        known = {
            name: [p for p in found[at] if p[key] is not None] for name, at in (("RL", "rl"), ("best of n", "best_of"))
        }
        curves = {name: points for name, points in known.items() if points}
        drawings.append((title, distance_chart(curves, key, label=f"{title}, against distance")))
    points = [p for p in found["rl"] if p["gold"] is not None]
    return {
        "gold": found["gold"], "first": points[0], "best": points[peak(points)], "last": points[-1],
        "num_exams": len(found["rl"]), "num_known": len(points), "drawings": drawings,
    }  # fmt: skip


def _pair(arena: Mapping[str, Any], a: str, b: str) -> Mapping[str, Any] | None:
    return next((pair for pair in arena["pairs"] if (pair["a"], pair["b"]) == (a, b)), None)


def _elo_scale(arena: Mapping[str, Any]) -> tuple[float, float]:
    """Ends of the axis on which the players' intervals are drawn."""
    low = min(player["elo_low"] for player in arena["players"].values())
    high = max(player["elo_high"] for player in arena["players"].values())
    margin = max(0.06 * (high - low), 1.0)
    return low - margin, high + margin


def _measures(arena: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a measure, those in no reward term first; `delta` is the trained policy minus the initial one."""
    unrewarded = set(arena.get("unrewarded", ()))
    names = list(dict.fromkeys(name for measures in arena["measures"].values() for name in measures))
    deltas = {row["measure"]: row for row in arena.get("deltas", ()) if (row["a"], row["b"]) == ("rl", "initial")}
    rows = []
    for name in sorted(names, key=lambda name: name not in unrewarded):
        delta = deltas.get(name)
        reach = max(abs(delta["low"]), abs(delta["high"]), 1e-9) * 1.1 if delta else None
        rows.append(
            {
                "name": _title(name),
                "rewarded": name not in unrewarded,
                "cells": [arena["measures"].get(player, {}).get(name) for player in arena["players"]],
                "delta": delta,
                "reach": reach,
                "excludes_zero": delta is not None and (delta["low"] > 0 or delta["high"] < 0),
            }
        )
    return rows


def _samples(answers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The prompts whose ids have the smallest SHA-256: fixed before any answer exists, whatever the answers say."""
    picked = sorted(answers, key=lambda row: hashlib.sha256(row["prompt_id"].encode("utf-8", "replace")).digest())
    samples = []
    for row in picked[:NUM_SAMPLES]:
        utility = row.get("utility", {})
        highest = max(utility.values(), default=None)
        leaders = [player for player, value in utility.items() if value == highest]
        constraints = [
            " ".join([str(c["kind"]).replace("_", " "), *([json.dumps(c["value"])] if "value" in c else [])])
            for c in row.get("constraints", ())
        ]
        samples.append(
            {
                "id": row["prompt_id"],
                "prompt": _printable(row["prompt"]),
                "reference": _printable(row.get("reference") or ""),
                "constraints": constraints,
                "answers": [
                    {**answer, "player": player, "text": _printable(answer["text"]), "utility": utility.get(player)}
                    for player, answer in row["answers"].items()
                ],
                "best": leaders[0] if len(leaders) == 1 else None,
            }
        )
    return samples


def _total(manifest: Manifest) -> dict[str, float]:
    stages = manifest.record.stages
    return {
        "seconds": sum(stage.seconds for stage in stages),
        "generated": sum(stage.tokens.generated for stage in stages),
        "trained": sum(stage.tokens.trained for stage in stages),
        "scored": sum(stage.tokens.scored for stage in stages),
        "peak_memory_bytes": max((stage.peak_memory_bytes for stage in stages), default=0),
    }


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path} is missing, though its stage is done; restore it or run the round again") from None
    except ValueError as e:
        raise DataError(f"{path} is not JSON ({e}); restore it or run the round again") from None


def _read_lines(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        return [json.loads(line) for line in text.split("\n") if line]
    except FileNotFoundError:
        raise DataError(f"{path} is missing, though its stage is done; restore it or run the round again") from None
    except json.JSONDecodeError as e:
        raise DataError(f"{path} has a line that is not JSON ({e.msg}); restore it or run the round again") from None


def _printable(text: str) -> str:
    """Control characters become visible pictures (U+2400...), so that none is lost or acts."""
    return "".join(chr(0x2400 + ord(c)) if ord(c) < 32 and c not in "\n\t" else c for c in text)


def _title(name: str) -> str:
    """A key as a heading: `reference_f1` is Reference F1, `truncated_frac` is Truncated share."""
    known = {"kl": "KL", "f1": "F1", "frac": "share", "ece": "calibration error"}
    words = [known.get(word, word) for word in name.split("_")]
    return words[0][:1].upper() + " ".join(words)[1:]


def _place(value: float, low: float, high: float) -> str:
    """Where `value` lies on an axis from `low` to `high`, in percent, for a style attribute."""
    return f"{min(max((value - low) / (high - low), 0.0), 1.0):.2%}"


_FILTERS: Mapping[str, Callable[..., str]] = {
    "number": format_number,
    "signed": format_signed,
    "percent": format_percent,
    "duration": format_duration,
    "bytes": format_bytes,
    "count": format_count,
    "sentence": lambda text: text[:1].upper() + text[1:],
    "title": _title,
    "code": lambda text: Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text)))),
    "utility": lambda value: "\u2013" if value is None else f"{value:+.2f}".replace("-", "\u2212"),
    "place": _place,
    "width": lambda low, high, span_low, span_high: f"{(high - low) / (span_high - span_low):.2%}",
    "short": lambda digest: digest[:12],
}
