"""The record of a trial: the plain files that it leaves, which are the source of truth of a study."""
