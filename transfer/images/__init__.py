"""From folders, lists, arrays and tensorflow_datasets to checked splits, and from splits to batches."""
