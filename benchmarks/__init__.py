"""Studies that need a checkout: each is `python -m benchmarks.x.y`, and README.md says what it answers."""
