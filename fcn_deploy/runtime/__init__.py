"""One way to run a model, whatever computes it: open a runner, feed arrays, get arrays."""
