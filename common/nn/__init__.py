"""Tensors in, tensors out: the model. Knows no file, process, config or log."""
