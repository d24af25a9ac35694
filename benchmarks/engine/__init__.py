"""The measuring itself: the rows, their processes, and the limits of the device."""
