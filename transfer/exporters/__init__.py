"""Files for other runtimes, each verified against Keras."""
