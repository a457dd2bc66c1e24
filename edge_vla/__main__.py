"""`python -m edge_vla`, where the command `edge-vla` is not on the path."""

from edge_vla.cli import main

main()
