"""vLLM's CPU platform, and the name that its workers have as a resource of Ray: all that the CPU build lacks for Ray.

vLLM finds it by the entry point of `install`, in every process whose PYTHONPATH holds the folder.
"""

from __future__ import annotations

from pathlib import Path

from vllm.platforms.cpu import CpuPlatform

_METADATA = "Metadata-Version: 2.1\nName: drafthouse-cpu-for-ray\nVersion: 0\n"


class CpuForRay(CpuPlatform):
    """Workers take a 'GPU' each, of which Ray has as many as it is told."""

    ray_device_key = "GPU"


def qualified_name() -> str:
    """What vLLM asks the entry point."""
    return f"{__name__}:{CpuForRay.__name__}".replace(":", ".")


def install(folder: Path) -> None:
    """Make a folder on the PYTHONPATH tell vLLM of the platform."""
    about = folder / "drafthouse_cpu_for_ray-0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(_METADATA)
    (about / "entry_points.txt").write_text(f"[vllm.platform_plugins]\ncpu_for_ray = {__name__}:qualified_name\n")
