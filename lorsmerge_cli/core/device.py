"""The device that matrices are pruned on."""

from __future__ import annotations

import torch

from lorsmerge_cli.errors import DeviceFault, UsageFault


def resolve_device(name: str) -> torch.device:
    """Return the device that `auto`, `cpu`, `cuda`, `cuda:1` or `mps` means on this machine.

    Raises:
        UsageFault: the name is none of these.
        DeviceFault: this machine, or this PyTorch, has no such device.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise UsageFault(f"--device {name} is not auto, cpu, cuda, cuda:N or mps.")
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available[device.type]:
        raise DeviceFault(
            f"--device {name}: PyTorch {torch.__version__} finds no such device here.",
            "Use --device cpu, or check `nvidia-smi` and the PyTorch build.",
        )
    return device
