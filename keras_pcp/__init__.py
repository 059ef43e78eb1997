"""keras_pcp prunes channels out of Keras 3 models while they train, and exports them to LiteRT.

model.fit(x, y, callbacks=[keras_pcp.ProgressivePruning(max_macs=0.5, validation_data=(xv, yv))])
keras_pcp.export_litert(model, "small.tflite")
"""

import sys

import lazy_loader

from keras_pcp.version import __version__

# The names are listed in `__init__.pyi` and imported when they are first used, so `keras-pcp --help` needs no TensorFlow.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

if "keras" in sys.modules:  # it has to know the layers and models of ours that a file may hold
    from keras_pcp import adaptation, supernet
