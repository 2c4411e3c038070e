"""Advice: measurements on sample features, and the estimated accuracy and time of each case."""
