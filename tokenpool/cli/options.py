"""From the fields of a dataclass to argparse's options and back: every option is written once, where it is used.

    @dataclass(frozen=True)
    class Options:
        saving: float | None = option(None, "share of the computations to save", "SHARE", share=True)

`add` makes options of the fields, `fill` makes an instance of what was typed. Every value is checked here.
"""

import argparse
import difflib
import math
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")


def add(parser: argparse.ArgumentParser, kind: type, command: str) -> None:
    """An option for every field of a dataclass that has a help text."""
    hints = typing.get_type_hints(kind)
    for field in fields(kind):
        about = field.metadata
        if "help" not in about or command not in about.get("commands", (command,)):
            continue
        many = typing.get_origin(hints[field.name]) is tuple
        value = next((t for t in typing.get_args(hints[field.name]) if t is not type(None)), hints[field.name])
        default = parser.get_default(field.name) or field.default
        how: dict[str, Any] = dict(help=about["help"].replace("%", "%%"), default=default)
        if default and default is not MISSING:
            how["help"] += f"; default: {' '.join(default) if many else default}"
        flag = about.get("flag", "--" + field.name.replace("_", "-"))
        if flag:
            how |= dict(dest=field.name, required=default is MISSING)
        if value is bool:
            how["action"] = "store_true"
        else:
            how |= dict(metavar=about["metavar"], type=_checked(value, about))
        if many:
            how["nargs"] = "+" if flag else "*"
        elif not flag and default is not MISSING:
            how["nargs"] = "?"
        parser.add_argument(flag or field.name, **how)


def fill(kind: type[T], args: argparse.Namespace) -> T:
    """An instance of a dataclass, of what was typed."""
    given = {f.name: getattr(args, f.name) for f in fields(kind) if f.metadata and hasattr(args, f.name)}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


def _checked(kind: type, about: Mapping[str, Any]) -> Callable[[str], Any]:
    """Text -> value, for argparse."""
    allowed, right = _allowed(kind, about)

    def convert(text: str) -> Any:
        try:
            value = kind(text)
            if right(value):
                return value
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"{text}: use {allowed}.")

    return convert


def _allowed(kind: type, about: Mapping[str, Any]) -> tuple[str, Callable[[Any], bool]]:
    """What an option may be, in words and as a test."""
    if "share" in about:
        return "a share between 0 and 1, such as 0.42", lambda v: 0 < v < 1
    if kind is float:
        return "a number above 0", lambda v: 0 < v < math.inf
    if kind is int:
        least = about.get("least", 1)
        return f"a whole number of {least} or more", lambda v: v >= least
    if "choices" in about:
        return " or ".join(about["choices"]), lambda v: v in about["choices"]
    if "device" in about:
        return "cpu, cuda or mps, and one that PyTorch finds on this machine", _here
    return "", lambda v: True


def _here(device: str) -> bool:
    kind = device.split(":")[0]
    if kind in ("cuda", "mps"):
        import torch
        return torch.cuda.is_available() if kind == "cuda" else torch.backends.mps.is_available()
    return device == "cpu"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    return "".join(f" Did you mean {near}?" for near in difflib.get_close_matches(word, list(known), n=1))


class Parser(argparse.ArgumentParser):
    """argparse, with errors as sentences that are raised."""

    def error(self, message: str) -> NoReturn:
        message = re.sub("^argument (\\S+):", r"\1", message)
        if found := re.match(r"unrecognized arguments: (\S+)", message):
            message = f"unknown option {found[1]}.{did_you_mean(found[1], self._option_string_actions)}"
        if not re.search(r": use .*\.$", message):                       # which says what to type already
            message = f"{message.rstrip('.')}. Type: {self.prog} --help".replace("?.", "?")
        raise ValueError(message[0].upper() + message[1:])
