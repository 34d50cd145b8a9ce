"""The eager front end: fuse by name, swap modules, dispatch functions while the model runs."""
