"""Segment photos of any size in bulk: decode, infer, encode, on one machine or on a Ray cluster."""
