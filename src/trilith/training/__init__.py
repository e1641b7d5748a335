"""Training with Lightning: batches, recipes, stability, throughput, curves and exact resume."""
