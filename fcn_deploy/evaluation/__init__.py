"""Scores of an artifact on a data set."""
