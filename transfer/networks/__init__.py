"""Backbones by name, their weights, and operations on model graphs."""
