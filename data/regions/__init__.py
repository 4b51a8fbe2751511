"""Region features from images."""
