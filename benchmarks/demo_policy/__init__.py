"""The demo policy: training, packaging, recorded episodes, and what it can do in every number format."""
