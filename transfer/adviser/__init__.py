"""Measurements on sample features, and the estimate of each case."""
