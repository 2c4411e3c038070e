"""Errors, files written whole, commands, figures and HTML pages: code that every other package may use."""
