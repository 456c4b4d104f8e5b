"""The machine that a latency belongs to."""

import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve")
PACKAGES = ("edgeq", "onnxruntime", "numpy", "torch")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


@dataclass(frozen=True)
class Machine:
    """What decides how fast integers run here.

    Attributes:
        cpu: Model name.
        architecture: x86_64, aarch64, …
        cores: Logical processors that this process may use.
        int8: Instruction sets for integers (and the vector width) that the processor has.
        governor: Clock policy, or "unknown".
        load: Load average over a minute; above 0 others were running too.
        system: Operating system.
        versions: Packages.
    """

    cpu: str
    architecture: str
    cores: int
    int8: tuple[str, ...]
    governor: str
    load: float
    system: str
    versions: dict[str, str]


def describe() -> Machine:
    """Return this machine."""
    fields = _cpuinfo(Path("/proc/cpuinfo"))
    flags = fields.get("flags", fields.get("Features", "")).split()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(
        cpu=fields.get("model name") or platform.processor() or "unknown",
        architecture=platform.machine(),
        cores=cores,
        int8=tuple(flag for flag in FLAGS if flag in flags),
        governor=GOVERNOR.read_text().strip() if GOVERNOR.is_file() else "unknown",
        load=os.getloadavg()[0],
        system=f"{platform.system()} {platform.release()}",
        versions={"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    )


def _cpuinfo(path: Path) -> dict[str, str]:
    """Return the fields of the first processor; none where the system does not show them."""
    if not path.is_file():
        return {}
    first = path.read_text(errors="replace").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"
