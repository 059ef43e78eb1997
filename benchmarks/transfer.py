"""Transfers an ImageNet network to another data set, and saves it for the benchmarks on a trained model.

    python benchmarks/transfer.py --model efficientnet_lite0_imagenet.keras --data cifar10 --held-out test \
        --out lite0_cifar10.keras

The network must take images in [0, 255]. Those of the data set stay as they are, in [0, 1]; the saved model resizes them.
"""

import argparse
import json

import keras
import numpy as np
from trained_model import accuracy, add_arguments, batches, prepared

import keras_pcp

L = keras.layers


def with_new_head(base: keras.Model, shape: tuple[int, ...], size: int, classes: int) -> keras.Model:
    """Returns the network with inputs of a shape, resized to a size, and with a new last layer."""
    config = base.get_config()
    config["layers"][0]["config"]["batch_shape"] = (None, size, size, shape[-1])
    resized = keras.Model.from_config(config)
    resized.set_weights(base.get_weights())
    features = keras.Model(resized.input, resized.layers[-1].input, name="features")
    i = keras.Input(shape)
    h = features(L.Rescaling(255.0)(L.Resizing(size, size)(i)))
    return keras.Model(i, L.Dense(classes, name="classes")(h), name=base.name)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0.02)
    args = parser.parse_args()
    (x, y), val, test = prepared(args)
    x, y = x[: args.images], y[: args.images]
    keras.utils.set_random_seed(0)
    model = with_new_head(
        keras.models.load_model(args.model, compile=False), x.shape[1:], args.size, int(np.max(y)) + 1
    )
    rate = keras.optimizers.schedules.CosineDecay(args.rate, len(x) // args.batch * args.epochs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, weight_decay=1e-4), loss, metrics=["accuracy"]
    )
    model.fit(batches(x, y, args.batch, 0, 2, flip=True), epochs=args.epochs, verbose=2)
    keras_pcp.reestimate_batch_norm(model, x)
    model.save(args.out)
    found = {"val_acc": accuracy(model, *val), "acc": accuracy(model, *test)}
    print(json.dumps({"suite": "transfer", "images": len(x), "epochs": args.epochs, **found}))


if __name__ == "__main__":
    main()
