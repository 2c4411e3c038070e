"""Training that writes a complete run at once and improves it while the time budget lasts."""
