"""Vision on TensorRT: engines built at true shapes, and what INT8 does to tokens."""
