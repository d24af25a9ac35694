"""Half precision and 8 bits."""
