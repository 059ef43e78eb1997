"""Pruning strategies, one paper per file. They know neither Keras nor surgery, only graphs, numbers and selections."""
