"""A command-line tool for ByteDance's Seedream image models."""

__version__ = "0.1.0"
