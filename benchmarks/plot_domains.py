"""Draws the features of both domains in two dimensions: trained on the source, as DANN, and pruned.

python benchmarks/plot_domains.py --data-dir DIR --cache DIR --out docs/images/domains.png
"""

import numpy as np
from adaptation import make_parser, prepared, prune, trained
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

COUNT = 400


def main():
    args = make_parser(__doc__).parse_args()
    data = prepared(args)
    networks = {
        "trained on the source": trained(args, "source_only", data, 0),
        "DANN": trained(args, "dann", data, 0),
        "DANN, pruned to half": prune(args, "pseudo", 0.5, data, 0)[0],
    }
    figure = Figure(figsize=(10, 3.5), layout="constrained")
    axes = figure.subplots(1, len(networks))
    for axis, (title, dann) in zip(axes, networks.items(), strict=True):
        tests = data["source_test"], data["target_test"]
        features = np.concatenate([dann.features.predict(x[:COUNT], verbose=0) for x, _ in tests])
        places = TSNE(random_state=0, init="pca").fit_transform(features)
        for name, color, part in (("source", "tab:blue", places[:COUNT]), ("target", "tab:orange", places[COUNT:])):
            axis.scatter(*part.T, s=4, c=color, label=name)
        axis.set(title=title, xticks=[], yticks=[])
    axes[0].legend(frameon=False)
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
