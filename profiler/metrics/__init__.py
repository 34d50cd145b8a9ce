"""Metrics of tensors and pairs of tensors, as sums that merge over batches."""
