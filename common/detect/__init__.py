"""Detectors: from an image to boxes, classes and region features."""
