"""What is read: collections, training triples and datasets, row by row."""
