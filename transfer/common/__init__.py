"""Errors, atomic files, command helpers and page templates: what every other package may use."""
