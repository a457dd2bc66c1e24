"""A small real policy and its tabletop world: what the project's claims are measured on when no weights are at hand."""
