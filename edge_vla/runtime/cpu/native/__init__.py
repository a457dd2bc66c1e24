"""The network in C for a CPU: one call a pass, compiled by the machine's own compiler.

Knows weights as lines of codes, threads and bfloat16. Knows nothing of files, prompts or robots.
"""
