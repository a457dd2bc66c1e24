"""The GPU engine: an action is one launch of one CUDA graph, or on a CPU the same calls with the reference kernels."""
