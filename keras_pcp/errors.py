"""Exception classes. They share a base class, so that `except keras_pcp.PruningError` catches all of them."""


class PruningError(Exception):
    """Base class of the errors that keras_pcp raises (except ImportError if an extra is not installed)."""


class UnsupportedModelError(PruningError, ValueError):
    """The model, or one of its layers, cannot be analysed safely."""


class InvalidArgumentError(PruningError, ValueError):
    """An argument is out of range or does not fit the model."""


class NotFiniteError(InvalidArgumentError):
    """The model holds or computes NaN or infinite values, so it cannot be measured: its training has diverged."""


class LimitError(PruningError, ValueError):
    """A limit such as `max_macs` cannot be reached by pruning this model."""


class ExportError(PruningError, RuntimeError):
    """A model cannot be converted, or the converted file does not compute what the Keras model computes."""


class FileError(PruningError, OSError):
    """A file cannot be written; an existing file is unchanged."""
