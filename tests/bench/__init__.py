"""Benchmarks: commands, never tests."""
