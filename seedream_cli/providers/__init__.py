"""The providers by name; their modules are imported on demand."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

from ..errors import InputError, Problem
from ..text import nearest
from . import contract

if TYPE_CHECKING:
    from . import acedata, ark, byteplus, cometapi, contract, ope, openai, sandbox

    # Here mypy checks every module against the protocol.
    _DIALECTS: tuple[contract.Dialect, ...] = (cometapi, acedata, ope, ark, byteplus, openai, sandbox)

PROVIDERS = ("cometapi", "acedata", "ope", "ark", "byteplus", "openai", "sandbox")
"""All names, in the order in which a key is looked for."""


def load(name: str) -> contract.Dialect:
    """A provider's dialect. Raises `InputError` with the nearest names for an unknown one."""
    if name in PROVIDERS:
        return cast("contract.Dialect", import_module(f".{name}", __name__))
    raise InputError([_unknown(name)], kind="usage")


def specs() -> tuple[contract.ProviderSpec, ...]:
    """The specs of all providers, in order."""
    return tuple(load(name).spec for name in PROVIDERS)


def _unknown(name: str) -> Problem:
    near = nearest(name, PROVIDERS, 2) or PROVIDERS
    return Problem("provider", f"{name!r} is no known provider", f"known: {', '.join(near)}", code="usage")
