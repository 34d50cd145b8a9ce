"""Speed and memory of the stages and of comparing them, as ratios in one run: `make bench`."""
