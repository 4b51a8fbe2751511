"""Captions with images: the download of a table of addresses, and one's own files."""
