"""`fit`: train the head, then fine-tune; schedules, recipes and checkpoints."""
