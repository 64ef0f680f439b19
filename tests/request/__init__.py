"""Tests of models, sizes and references."""
