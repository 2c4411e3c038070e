"""One forward pass over frozen layers: engines, the feature store, and the exact head."""
