"""Wrong calls by the thousand, of the command line and of the Python API, made from their own annotations."""
