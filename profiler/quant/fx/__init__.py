"""The front end that traces: one graph, fused and prepared."""
