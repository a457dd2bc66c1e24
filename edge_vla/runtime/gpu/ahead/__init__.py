"""Kernels compiled ahead on a machine without a GPU, kept in an artifact's device cache, and handed to Triton at load.

A robot then needs no compiler of kernels: neither time for it, nor ptxas' and LLVM's memory.
"""
