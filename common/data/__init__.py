"""Samples to batches on a device. Knows no file format of a task, no config but the loader's."""
