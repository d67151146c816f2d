"""What a report shows of a reward model's certificate, and of odd pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from postgrad.rounds.numbers import format_percent, format_signed
from postgrad.rounds.report_charts import interval_chart, reliability_chart

_TITLES: Mapping[str, str] = {
    "margin": "By how far apart the rewards are",
    "length": "By length",
    "strength": "By strength of the preference",
    "domain": "By domain",
    "rater": "By rater",
}


def certificate_view(found: Mapping[str, Any]) -> dict[str, Any]:
    """Tables and drawings of a certificate, as report_certificate.html.jinja takes them."""
    return {
        "length": None,
        **found,
        "overall": {"value": found["accuracy"], "low": found["accuracy_low"], "high": found["accuracy_high"]},
        "slices": [
            {"title": _TITLES[name], "drawing": _accuracies(rows, _TITLES[name])}
            for name, rows in found["by"].items()
            if len(rows) > 1
        ],
        "probe_drawing": _gains(found["probes"]) if found["probes"] else None,
        "reliability": [
            (title, reliability_chart(found[key], label=f"Reliability of the reward model, {title.lower()}"))
            for title, key in (("As it is", "calibration"), ("After a temperature", "calibration_calibrated"))
            if found[key]
        ],
    }


def _accuracies(rows: Sequence[Mapping[str, Any]], title: str) -> Any:
    named = [{**row, "name": f"{row['name']} (n = {row['num']})"} for row in rows]
    return interval_chart(named, label=f"Accuracy. {title}", mark=0.5, low=0.0, high=1.0, form=format_percent)


def _gains(probes: Sequence[Mapping[str, Any]]) -> Any:
    rows = [{"name": probe["kind"], **probe["gain"]} for probe in probes]
    reach = max(0.5, *(abs(row[end]) for row in rows for end in ("low", "high"))) * 1.1
    label = "What one change adds to the reward, in its standard deviations"
    return interval_chart(rows, label=label, mark=0.0, low=-reach, high=reach, form=format_signed)
