"""`python -m keras_pcp` is the command `keras-pcp`."""

import sys

from keras_pcp.cli import main

if __name__ == "__main__":
    sys.exit(main())
