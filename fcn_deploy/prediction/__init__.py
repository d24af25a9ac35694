"""Photos of any size to label maps, few or a million: decode, infer, encode, on one machine or on a Ray cluster."""
