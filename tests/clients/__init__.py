"""Other projects' clients, unmodified, each in its own environment, against a real server: `make test-clients`."""
