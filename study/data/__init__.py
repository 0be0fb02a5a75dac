"""Data sets (one file each) and the loaders that make batches of them. Importing this package does not import torch."""
