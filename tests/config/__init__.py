"""Tests of options, settings and prompt files."""
