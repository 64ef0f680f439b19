"""Tests of HTTP: calls, links, retries, rate limits."""
