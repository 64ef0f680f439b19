"""How many of what one request or one command may ask for."""

from __future__ import annotations

GROUP_MOST = 15
"""References and results of one request together (image generation API, `max_images`)."""

COUNT_MOST = 1000
"""A guard against a slip of the finger: every one of them is billed."""
