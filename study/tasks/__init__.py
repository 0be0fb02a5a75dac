"""What is trained: LightningModules, and the solvers they share."""
