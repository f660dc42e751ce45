"""Fields of a dataclass that are options of the command line too, so that each is described once, where it is used."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def option(default: Any, help: str, metavar: str = "NAME", **more: Any) -> Any:
    """A field of a dataclass, with what `tokenpool.cli.options` reads.

    Args:
        default: MISSING makes the option required.
        more: `flag`: how the option is typed, where it is not the field's name; "" for an argument without a flag.
            `least`: the smallest whole number allowed, 1 unless given. `share`: a number between 0 and 1.
            `choices`: the words allowed. `device`: a device that PyTorch has here.
            `commands`: the only commands that have it.
    """
    return field(default=default, metadata=dict(help=help, metavar=metavar, **more))
