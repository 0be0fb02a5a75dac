"""Records in, answers out: what a study found, with intervals, and what it cannot say."""
