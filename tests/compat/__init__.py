"""Tests of `edge_vla.compat`."""
