"""A study's pages on W&B, as code: a workspace and a report of its runs, and a summary run with its answers."""
