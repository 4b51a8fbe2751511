"""Boxes and region features of an image, in whatever form they are stored."""
