"""Captions with images: the download of a table of addresses, and the user's own files."""
