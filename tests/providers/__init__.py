"""Tests of the providers' dialects."""
