"""The front end that records a run: the model keeps its own Python forward, its ops get quantizers by name."""
