"""Bytes on disk to Python objects. Knows no sample, no config and no task."""
