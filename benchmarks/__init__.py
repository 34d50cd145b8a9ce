"""Our speed and memory next to other tools, on the same work in one run: `make bench`."""
