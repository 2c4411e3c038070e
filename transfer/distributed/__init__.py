"""Devices and processes: clusters, the process group, strategies, and which images each replica reads."""
