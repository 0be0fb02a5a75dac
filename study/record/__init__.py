"""The record: what a trial leaves behind. Plain files, the truth of a study. Importing it imports no torch."""
