"""Tests of the engine: kills, full disks, streams."""
