"""A config and weight files to a module with weights."""
