"""The version of keras_pcp."""

__version__ = "0.1.0"
