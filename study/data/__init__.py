"""Data sets: one file a data set, and the loaders. Importing this package imports no torch."""
