"""Tests of tables and batch folders."""
