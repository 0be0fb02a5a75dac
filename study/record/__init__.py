"""The record: what a trial leaves behind. Plain files, the truth of a study; importing this package imports no torch."""
