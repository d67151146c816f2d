"""No policy is optimised against a reward model whose certificate is missing, of other weights, or below the bar."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from postgrad.config.sections import BarConfig
from postgrad.errors import DataError
from postgrad.graders.reward_model import LengthTrend, RewardModelGrader
from postgrad.models.load import load_reward_model
from postgrad.models.placement import Placement
from postgrad.models.policy import PolicyModel
from postgrad.run import CERTIFICATE, atomic_write, sha256_file


def weights_sha256(directory: Path) -> str:
    """Names the weights of a model directory, wherever it lies and whatever wrote it."""
    listing = "".join(sha256_file(path) + path.name for path in sorted(directory.glob("*.safetensors")))
    return hashlib.sha256(listing.encode("utf-8")).hexdigest()


def write_certificate(directory: Path, found: Mapping[str, Any], bar: BarConfig) -> dict[str, Any]:
    """Put a certificate beside the reward model that it is about; what was written."""
    whole = {"model_sha256": weights_sha256(directory), "below_bar": below_bar(found, bar), **found}
    atomic_write(directory / CERTIFICATE, json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
    return whole


def certified_grader(directory: Path, bar: BarConfig, *, placement: Placement | None = None) -> RewardModelGrader:
    """A reward model that may be optimised against, as a grader; see `certified_reward_model`."""
    model = certified_reward_model(directory, bar, placement=placement)
    return RewardModelGrader(model, length=length_trend(directory))


def length_trend(directory: Path) -> LengthTrend | None:
    """What a reward model was certified without; None where it was certified as it is, or not at all.

    Raises:
        DataError: its certificate cannot be read.
    """
    path = directory / CERTIFICATE
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_bytes()).get("length")
        taken = found is not None and found["residualised"]
        return LengthTrend(found["slope"]["value"], found["centre"]) if taken else None
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise _no_certificate(path, e) from None


def certified_reward_model(directory: Path, bar: BarConfig, *, placement: Placement | None = None) -> PolicyModel:
    """A reward model that may be optimised against, less its `length_trend`.

    Args:
        directory: of the model, with its certificate.
        bar: of the recipe that optimises; the one it was trained under may have been lower.
        placement: as for `load_reward_model`.

    Raises:
        DataError: there is no certificate, it is of other weights, or it does not pass the bar: with the reason.
    """
    path = directory / CERTIFICATE
    try:
        found = json.loads(path.read_bytes())
        digest = found["model_sha256"]
        reasons = below_bar(found, bar)
    except FileNotFoundError:
        raise DataError(
            f"reward model {str(directory)!r} has no {CERTIFICATE}, and none is optimised without; train it with a "
            'recipe of method "reward" or "round", which makes one'
        ) from None
    except (ValueError, KeyError, TypeError) as e:
        raise _no_certificate(path, e) from None
    if digest != weights_sha256(directory):
        raise DataError(f"{str(path)!r} is of other weights than those beside it; train the reward model again")
    if reasons:
        raise DataError(
            f"reward model {str(directory)!r} may not be optimised: {'; '.join(reasons)}; collect more labels, train "
            "it longer, or lower the bar"
        )
    return load_reward_model(directory, placement=placement)


def below_bar(found: Mapping[str, Any], bar: BarConfig) -> list[str]:
    """What a certificate lacks, in words; nothing where it passes."""
    reasons = []
    if found["accuracy_high"] < bar.min_accuracy:
        reasons.append(
            f"it is right on {_share(found['accuracy'])} of held-out pairs ({_share(found['accuracy_low'])} to "
            f"{_share(found['accuracy_high'])}), below 'min_accuracy' = {_share(bar.min_accuracy)}"
        )
    best = found["baselines"][0]
    if best["gain"]["high"] < bar.min_gain:
        reasons.append(
            f"its accuracy is {best['gain']['value']:+.3f} from that of the baseline {best['name']!r}, below "
            f"'min_gain' = {bar.min_gain:+.3f}"
        )
    error = found["ece_calibrated"]
    if error is not None and error > bar.max_calibration_error:
        reasons.append(
            f"its calibration error is {error:.3f}, above 'max_calibration_error' = {bar.max_calibration_error:.3f}"
        )
    reasons += [
        f"the probe {probe['kind']!r} adds {probe['gain']['value']:.2f} standard deviations of reward, above "
        f"'max_probe_gain' = {bar.max_probe_gain:.2f}"
        for probe in found["probes"]
        if probe["gain"]["low"] > bar.max_probe_gain
    ]
    return reasons


def _no_certificate(path: Path, error: Exception) -> DataError:
    return DataError(f"{str(path)!r} is no certificate ({error!r}); train the reward model again")


def _share(value: float) -> str:
    return f"{value:.1%}"
