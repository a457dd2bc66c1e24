"""What can be counted of the GPU engine without a GPU: launches of an action, and what each kernel costs a chip.

`python -m benchmarks.gpu.counted` writes the table that CI compares with (`pytest -m chips`).
"""
