"""Expected milliseconds of an action's stages, from the counted table: a few physical terms and three fitted constants.

`python -m benchmarks.gpu.model` fits and tests them on the H200's committed runs and predicts other devices.
"""
