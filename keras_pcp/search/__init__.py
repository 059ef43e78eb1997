"""The search for widths without training."""
