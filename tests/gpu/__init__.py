"""The CUDA path without a GPU: a CUDA runtime that computes nothing, and tensors that report cuda:0."""
