"""The offline provider: a program of its own that implements every provider's API."""

from __future__ import annotations
