"""The run folder: write it, read it again, its plots and pages, and predictions with it."""
