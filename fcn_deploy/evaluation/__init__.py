"""Scores of an artifact on a data set whose true labels are known."""
