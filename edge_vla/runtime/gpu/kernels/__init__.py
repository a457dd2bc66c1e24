"""Triton kernels for one robot's decoder and towers, each file with its torch reference of the same arguments.

`reference` runs anywhere and is what `kernel` is judged by; the caller names one, and nothing is chosen silently.
No kernel reads the host or waits for it, so that all of them can be captured in one graph.
"""
