"""Metrics, calibration, screening and explanations of a trained model."""
