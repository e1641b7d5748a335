"""Training with Lightning: batches, recipes, stability, throughput, curves and exact resume.

Nothing is handed on here: pretrain and evolve import what they use, so that DVC reruns only the
stage whose files changed.
"""
