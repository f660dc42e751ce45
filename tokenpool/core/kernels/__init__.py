"""Faster ways to compute what clustering.py says: the same answers, computed elsewhere or otherwise.

A kernel is a module with clustering.py's six heavy functions: `pairwise`, `farthest_first`, `k_medoids`, `k_means`,
`agglomerative`, `cluster_means`. "plain" is clustering.py itself, and every other kernel is tested against it.

    plain     PyTorch, any device; what is traced, exported and read
    numba     compiled loops on the CPU; with the optional package numba
    triton    one program an image on CUDA; with the package triton, which comes with PyTorch on Linux
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
from types import ModuleType

import torch

from tokenpool.core import clustering

KERNELS = ("auto", "plain", "numba", "triton")
_HOME = {"numba": "cpu", "triton": "cuda"}               # kernel -> type of device, and the file beside this one
_MODULES: dict[str, ModuleType] = {"plain": clustering}        # those that have been asked for


def pick(kernel: str, device: torch.device) -> ModuleType:
    """The module that computes for tensors on `device`.

    Args:
        kernel: "auto" takes the fastest that is installed, or what the environment variable TOKENPOOL_KERNEL says.
            A graph that is exported is always plain: it has to run where this package is not.

    Raises:
        ValueError: a kernel was asked for by name that is not installed or computes elsewhere.
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
    """Whether a kernel can be had; a package that is there but broken leaves a line in the log."""
    if importlib.util.find_spec(kernel) is None:
        return False
    try:
        _MODULES[kernel] = importlib.import_module(f"tokenpool.core.kernels.{_HOME[kernel]}")
    except Exception as error:                           # numba refuses a NumPy that is newer than itself, for example
        logging.getLogger(__name__).warning("The package %s is installed but does not load (%s): plain PyTorch "
                                            "computes the poolings, which is slower.", kernel, error)
    return kernel in _MODULES
