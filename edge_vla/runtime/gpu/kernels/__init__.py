"""Triton kernels for one robot's decoder and towers, each beside a torch reference with the same arguments.

A `reference` runs anywhere and is the oracle of its `kernel`; the caller names one, and nothing falls back silently.
No kernel reads from the host or waits for it, so all of them can be captured in one CUDA graph.
"""
