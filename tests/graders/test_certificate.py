"""No reward model is optimised without a certificate that passes the bar."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from postgrad.config.sections import BarConfig
from postgrad.errors import DataError
from postgrad.evals.reward_health import HeldOut, Probe, certificate
from postgrad.graders.certificate import below_bar, certified_reward_model, write_certificate
from postgrad.models.load import load_policy, save_reward_model


def healthy(**changes: Any) -> dict[str, Any]:
    """Right on seven pairs in ten, as sure as it should be, and half a deviation up where an answer is padded."""
    pairs = [HeldOut(f"p{i}", 0.85 if i % 10 < 7 else -0.85, 5 if i % 5 < 3 else -5) for i in range(400)]
    probes = [Probe("length", str(i), 0.0, 0.5 + 0.1 * (i % 3)) for i in range(30)]
    return certificate(pairs, probes, reward_std=1.0) | changes


@pytest.fixture
def model(tmp_path: Path, tiny_model_directory: Path) -> Path:
    torch.manual_seed(0)
    policy = load_policy(tiny_model_directory, heads=("reward",))
    save_reward_model(policy, tmp_path / "rm", tokenizer_from=tiny_model_directory, canaries=[(1, 2, 3), (4, 5)])
    return tmp_path / "rm"


def test_a_healthy_one_may_be_optimised(model: Path) -> None:
    write_certificate(model, healthy(), BarConfig())
    assert "reward" in certified_reward_model(model, BarConfig()).heads


def test_without_a_certificate_or_with_half_of_one_none_is(model: Path) -> None:
    with pytest.raises(DataError, match=r"has no certificate\.json, and none is optimised without"):
        certified_reward_model(model, BarConfig())
    (model / "certificate.json").write_text("{}")
    with pytest.raises(DataError, match=r"is no certificate .*train the reward model again"):
        certified_reward_model(model, BarConfig())


def test_other_weights_under_the_same_certificate_are_refused(model: Path) -> None:
    write_certificate(model, healthy(), BarConfig())
    tensors = load_file(model / "heads.safetensors")
    save_file({k: v * 1.0001 for k, v in tensors.items()}, model / "heads.safetensors")
    with pytest.raises(DataError, match="is of other weights"):
        certified_reward_model(model, BarConfig())


@pytest.mark.parametrize(
    ("bar", "reason"),
    [
        ({"min_accuracy": 0.8}, r"right on 70\.0% of held-out pairs \(65\.\d% to 74\.\d%\), below 'min_accuracy' = 80"),
        ({"min_gain": 0.3}, r"\+0\.100 from that of the baseline 'longer', below 'min_gain' = \+0\.300"),
        ({"max_probe_gain": 0.4}, r"probe 'length' adds 0\.60 standard deviations .* 'max_probe_gain' = 0\.40"),
        ({"max_calibration_error": 0.0001}, r"calibration error is 0\.0\d\d, above 'max_calibration_error'"),
    ],
)  # fmt: skip
def test_each_bar_is_named_with_the_number_that_misses_it(model: Path, bar: dict[str, float], reason: str) -> None:
    found = healthy()
    assert below_bar(found, BarConfig()) == []
    written = write_certificate(model, found, BarConfig.model_validate(bar))
    assert len(written["below_bar"]) == 1
    assert json.loads((model / "certificate.json").read_text()) == written
    certified_reward_model(model, BarConfig())  # it is the bar of whoever optimises that counts
    with pytest.raises(DataError, match=f"may not be optimised: .*{reason}"):
        certified_reward_model(model, BarConfig.model_validate(bar))


def test_doubt_is_in_favour_of_the_model() -> None:
    """Twenty pairs cannot show that 70% is below 75%."""
    few = certificate([HeldOut(f"p{i}", 1.0 if i % 10 < 7 else -1.0, 0) for i in range(20)], [], reward_std=1.0)
    assert below_bar(few, BarConfig(min_accuracy=0.75)) == []
    assert len(below_bar(healthy(), BarConfig(min_accuracy=0.75))) == 1
