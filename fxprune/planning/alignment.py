"""Widths that a device computes without waste."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["preferred_multiple"]

# The size of vector registers of CPUs; elsewhere the alignment that tensor cores need of the rows of a matrix (NVIDIA,
# "Matrix Multiplication Background User's Guide").
_CPU_BYTES = {"AVX512": 64, "AVX2": 32}
_BYTES = 16


def preferred_multiple(module: nn.Module) -> int:
    """How many channels fill a vector register of the CPU, or an aligned access of a GPU's tensor core: a power of 2.

    Whether multiples of it are faster depends on the layers: measure it with `fxprune.measure_latency`.

    Args:
        module: device and dtype are those of its first floating-point parameter.

    Examples:
        >>> preferred_multiple(nn.Linear(2, 2).half().to("meta"))
        8
    """
    weight = next((parameter for parameter in module.parameters() if parameter.is_floating_point()), None)
    if weight is None:
        return 1
    on_cpu = weight.device.type == "cpu"
    bytes_ = _CPU_BYTES.get(torch.backends.cpu.get_cpu_capability(), _BYTES) if on_cpu else _BYTES
    return max(bytes_ // weight.element_size(), 1)
