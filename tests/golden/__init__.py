"""Reference data that other programs computed, cut small, and the scripts that made it."""
