"""Training: `fit`, fine-tuning recipes, schedules, checkpoints, and the learning-rate range test."""
