"""The providers by name. Only the module that is asked for is imported."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

from ..errors import InputError, Problem
from ..text import nearest
from . import contract

if TYPE_CHECKING:
    from . import acedata, ark, byteplus, cometapi, contract, ope, openai, sandbox

    # The type checker holds every module against the contract here.
    _DIALECTS: tuple[contract.Dialect, ...] = (cometapi, acedata, ope, ark, byteplus, openai, sandbox)

PROVIDERS = ("cometapi", "acedata", "ope", "ark", "byteplus", "openai", "sandbox")
"""Every provider's name, in the order in which a present key is looked for."""


def load(name: str) -> contract.Dialect:
    """The dialect of a provider. Raises `InputError` with the nearest names for one that is not known."""
    if name in PROVIDERS:
        return cast("contract.Dialect", import_module(f".{name}", __name__))
    raise InputError([_unknown(name)], kind="usage")


def specs() -> tuple[contract.ProviderSpec, ...]:
    """The data of all providers, in order."""
    return tuple(load(name).spec for name in PROVIDERS)


def _unknown(name: str) -> Problem:
    """What to tell a user who named no provider of ours."""
    near = nearest(name, PROVIDERS, 2) or PROVIDERS
    return Problem("provider", f"{name!r} is no known provider", f"known: {', '.join(near)}", code="usage")
