"""vLLM's CPU platform, and which of Ray's resources its workers take: all that the CPU build lacks for Ray.

A plug-in of vLLM, which every process of it asks for by its entry point. Importing this module imports vLLM.
"""

from __future__ import annotations

from vllm.platforms.cpu import CpuPlatform


class CpuForRay(CpuPlatform):
    """A worker takes a GPU, of which Ray has as many as it is told to have."""

    ray_device_key = "GPU"


def qualified_name() -> str:
    """What vLLM takes for its platform."""
    return f"{__name__}.{CpuForRay.__name__}"
