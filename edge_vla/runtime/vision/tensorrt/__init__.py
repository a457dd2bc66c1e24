"""Vision as a TensorRT engine: found, built, kept and run. TensorRT is imported when it is asked for."""
