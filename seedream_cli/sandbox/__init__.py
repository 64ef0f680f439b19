"""The offline provider: a program of its own that speaks every provider's dialect."""

from __future__ import annotations
