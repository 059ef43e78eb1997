"""A disk that is full."""

import resource
from contextlib import contextmanager


@contextmanager
def full_disk(limit: int = 100):
    """Lets no file grow beyond some bytes; Python gets an error from the system then, as from a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
