"""Names of devices."""

from __future__ import annotations

import pytest
import torch

from lorsmerge_cli.core.device import resolve_device
from lorsmerge_cli.errors import DeviceFault, UsageFault


def test_cpu_is_always_there() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    "name", ["", "gpu", "cuda:x", "cuda:-1", "meta", "xla", "Cpu", "cpu:", "0"]
)
def test_unknown_kinds_are_wrong_usage(name: str) -> None:
    with pytest.raises(UsageFault, match="--device"):
        resolve_device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:99", "mps"])
def test_absent_devices_are_faults(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: name == "cuda:99")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DeviceFault, match=name):
        resolve_device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:1"])
def test_present_devices(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device(name) == torch.device(name)
