"""Faster implementations with the parameters and results of the plain ones: without them only the time changes."""
