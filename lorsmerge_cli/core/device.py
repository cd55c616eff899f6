"""Where tensors are computed, and the memory that is free there."""

from __future__ import annotations

import os

import torch

from lorsmerge_cli.errors import DeviceFault, UsageFault

CPU = torch.device("cpu")


def resolve_device(name: str) -> torch.device:
    """The device that `auto`, `cpu`, `cuda`, `cuda:1` or `mps` means on this machine.

    Raises:
        UsageFault: no such kind of device.
        DeviceFault: the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise UsageFault(f"--device {name} is not auto, cpu, cuda, cuda:N or mps.")
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there[device.type]:
        raise DeviceFault(
            f"--device {name}: PyTorch {torch.__version__} finds no such device here.",
            "Use --device cpu, or check `nvidia-smi` and the PyTorch build.",
        )
    return device


def free_memory(device: torch.device = CPU) -> int:
    """Bytes that are free; on a CPU whose system does not tell, half of what there is."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if "SC_AVPHYS_PAGES" in os.sysconf_names:  # not on macOS
        pages = os.sysconf("SC_AVPHYS_PAGES")
    else:
        pages = os.sysconf("SC_PHYS_PAGES") // 2
    return pages * os.sysconf("SC_PAGE_SIZE")
