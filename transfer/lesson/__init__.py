"""Code that only the notebooks use: synthetic shapes, drawings, and the transferability experiment."""
