"""Limits that hold for every provider."""

from __future__ import annotations

GROUP_MOST = 15
"""References and images of one request together (image generation API, `max_images`)."""

COUNT_MOST = 1000
"""A guard against a typing mistake: every request is billed."""
