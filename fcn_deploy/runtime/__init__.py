"""One interface to run a model with any runtime: open a runner, feed arrays, get arrays."""
