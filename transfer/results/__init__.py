"""Run folders: writing, reading, plots, pages and predictions."""
