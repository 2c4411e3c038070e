"""What only the notebooks use: synthetic shapes, drawings, the transferability experiment."""
