"""Strangers' bytes become maps, lists, numbers, texts and arrays, or a `RefusedError`. A form a file."""
