"""Repairs a pruned model: statistics of batch normalization, least squares, distillation."""
