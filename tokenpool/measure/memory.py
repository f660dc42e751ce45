"""The peak memory of a call, and an error in place of a killed process where there is not enough.

CUDA: torch's own count (`max_memory_allocated`). CPU: the kernel's, on Linux only: the peak of resident memory, which
includes MKL, oneDNN and compiled loops. Freed pages are returned first; without that a second call would seem free.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

_MIB = 2**20
_SELF = Path("/proc/self")


def peak(run: Callable[[], object], device: str = "cpu") -> float:
    """MiB that `run` adds to the memory in use, at its peak. NaN where this machine does not tell."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / _MIB
    try:
        ctypes.CDLL(None).malloc_trim(0)
        (_SELF / "clear_refs").write_text("5")            # 5: forget the peak
        resident = _status("VmRSS")
    except (OSError, AttributeError, TypeError, ValueError):      # not Linux, not glibc, or not allowed
        run()
        return math.nan
    run()
    return max(0.0, (_status("VmHWM") - resident) / _MIB)


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there was not enough memory, which torch does in several ways."""
    words = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(w in str(error).lower() for w in words))


@contextmanager
def bounded(device: str = "cpu", share: float = 0.8) -> Iterator[None]:
    """On a Linux CPU, limits allocations inside to `share` of the free memory, so that too large a one is an error.

    Without a limit the kernel grants every request, and kills the process when the memory is used.
    """
    if torch.device(device).type != "cpu" or not sys.platform.startswith("linux"):
        yield
        return
    import resource
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = _status("VmSize") + int(share * free())
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def free() -> int:
    """Bytes that can still be used, of the machine or of a container with a limit."""
    found = [_number(Path("/proc/meminfo").read_text(), "MemAvailable")]
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        found.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return min(found)


def _status(key: str) -> int:
    return _number((_SELF / "status").read_text(), key)


def _number(text: str, key: str) -> int:
    line = next(line for line in text.splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024
