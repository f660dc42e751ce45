"""Faster implementations of clustering.py, with the same answers.

A kernel is a module with clustering.py's six heavy functions: `pairwise`, `farthest_first`, `k_medoids`, `k_means`,
`agglomerative`, `cluster_means`. "plain" is clustering.py itself, and every other kernel is tested against it.

    plain     PyTorch, any device; what is traced, exported and read
    numba     compiled loops on the CPU; needs the optional package numba
    triton    one program per image on CUDA; needs the package triton, which comes with PyTorch on Linux
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from types import ModuleType

import torch

from tokenpool.core import clustering

KERNELS = ("auto", "plain", "numba", "triton")
_HOME = {"numba": "cpu", "triton": "cuda"}               # kernel -> type of device, and the file beside this one
_MODULES: dict[str, ModuleType] = {"plain": clustering}        # those that have been asked for
_HELD = {"cpu": 1 << 20, "cuda": 1 << 26}                # entries of N x N matrices held at a time: 4 MB, 256 MB


def pieces(count: int, entries: int, device: torch.device) -> Iterator[slice]:
    """Cut `count` images (or heads) with a matrix of `entries` numbers each into pieces whose matrices stay in the
    cache of a CPU, or in a fraction of a GPU's memory. A graph computes all of them at once."""
    if torch.compiler.is_compiling():
        yield slice(None)
        return
    step = max(1, _HELD.get(device.type, _HELD["cpu"]) // entries)
    for first in range(0, count, step):
        yield slice(first, first + step)


def pick(kernel: str, device: torch.device) -> ModuleType:
    """The module that computes for tensors on `device`.

    Args:
        kernel: "auto" takes the fastest that is installed, or what the environment variable TOKENPOOL_KERNEL says.
            A graph that is exported is always plain: it has to run where this package is not.

    Raises:
        ValueError: the kernel that was asked for is not installed or does not support this device.
    """
    return _MODULES[_name(kernel, device.type)]


@torch.compiler.assume_constant_result                  # for torch.compile: looked up while tracing, not traced
def _name(kernel: str, device: str) -> str:
    if kernel == "auto":
        if torch.compiler.is_exporting() or torch.jit.is_tracing():
            return "plain"
        kernel = os.environ.get("TOKENPOOL_KERNEL", "auto")
        if kernel == "auto":
            return next((k for k, home in _HOME.items() if home == device and _load(k)), "plain")
        if kernel not in KERNELS:
            raise ValueError(f"TOKENPOOL_KERNEL={kernel!r} is no kernel. Use one of {', '.join(map(repr, KERNELS))}.")
    if kernel == "plain":
        return kernel
    if device != _HOME[kernel]:
        raise ValueError(f"kernel={kernel!r} computes on {_HOME[kernel]}, and these tokens are on {device}. "
                         "Use kernel='auto'.")
    if not _load(kernel):
        raise ValueError(f"kernel={kernel!r} needs the package {kernel}, which is not installed here or does not load. "
                         f"Type: pip install {kernel}, or use kernel='auto'.")
    return kernel


@functools.cache
def _load(kernel: str) -> bool:
    """Whether a kernel is available; a package that is installed but broken is reported in the log."""
    if importlib.util.find_spec(kernel) is None:
        return False
    try:
        _MODULES[kernel] = importlib.import_module(f"tokenpool.core.kernels.{_HOME[kernel]}")
    except Exception as error:                           # numba refuses a NumPy that is newer than itself, for example
        logging.getLogger(__name__).warning("The package %s is installed but does not load (%s): plain PyTorch "
                                            "computes the poolings, which is slower.", kernel, error)
    return kernel in _MODULES
