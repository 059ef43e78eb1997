"""Domain-adversarial networks as ordinary functional models, with their batches and the samples for pruning them.

References:
    Ganin et al., Domain-Adversarial Training of Neural Networks, JMLR 17, 2016, arXiv 1505.07818.
    Pruning them with source labels and target pseudo-labels: Guo et al., Model Compression using Progressive Channel
    Pruning, IEEE TCSVT 2020, arXiv 2507.04792.

Differs from the paper on pruning: its full text is not public. So the weight of the target (a half), the threshold of the
pseudo-labels, and how often they are renewed are our choices.
"""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_pcp.adaptation.discrepancy import MeanDiscrepancy, discrepancy_loss
from keras_pcp.adaptation.pseudo_labels import PseudoLabels
from keras_pcp.adaptation.reversal import GradientReversal
from keras_pcp.errors import InvalidArgumentError, UnsupportedModelError
from keras_pcp.support import checks
from keras_pcp.support.data import take_inputs, take_samples

SOURCE, TARGET = 0.0, 1.0


def build_dann(
    features: keras.Model, label_head: Any, domain_head: Any, *, weight: float = 1.0, name: str = "dann"
) -> keras.Model:
    """Builds a domain-adversarial network: two heads on the same features, one behind a gradient reversal.

    It is an ordinary functional model that shares its layers with `features` and the heads. If you prune it with your own
    batches, set the sample weight of the domain output to 0 in `validation_data`. Otherwise attempts, and criteria that use
    gradients, see the (reversed) domain loss. `DANN.validation_data` sets it for you.

    Args:
        features: functional model with one output.
        label_head: layer or model from features to one output per class: logits, unless you compile with another loss.
        domain_head: layer or model from features to one logit, (batch, 1), for the target domain; or `MeanDiscrepancy`,
            which is not adversarial and gets no reversal.
        weight: weight of the gradient reversal.
        name: name of the model.

    Returns:
        A model whose outputs are {"label": ..., "domain": ...}.

    Raises:
        UnsupportedModelError: `features` is not a functional model with one output.
        InvalidArgumentError: a head does not take the features, the domain head does not return (batch, 1), or `weight` is
            out of range.

    Example:
        >>> import keras, keras_pcp
        >>> x = keras.Input((8, 8, 1))
        >>> y = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(8, 3)(x))
        >>> model = keras_pcp.build_dann(keras.Model(x, y), keras.layers.Dense(10), keras.layers.Dense(1))
        >>> {name: tuple(output.shape) for name, output in model.output.items()}
        {'label': (None, 10), 'domain': (None, 1)}
    """
    if not isinstance(getattr(features, "output", None), keras.KerasTensor):
        raise UnsupportedModelError(
            "features must be a functional keras.Model with one output, built from an Input; got "
            f"{type(features).__name__} {getattr(features, 'name', '')!r}"
        )
    weight = checks.number("weight", weight, "[0, inf)")
    for role, head in (("label_head", label_head), ("domain_head", domain_head)):
        checks.function(role, head, "a layer or model, such as keras.layers.Dense(1)")
    checks.instance("name", name, str, "a str")
    shared = features.output
    adversarial = not isinstance(domain_head, MeanDiscrepancy)
    reached = GradientReversal(weight, name="reversal")(shared) if adversarial else shared
    domain, label = _called("domain_head", domain_head, reached), _called("label_head", label_head, shared)
    for role, output in (("label_head", label), ("domain_head", domain)):
        checks.instance(f"what {role} returns", output, keras.KerasTensor, "one tensor")
    if tuple(domain.shape[1:]) != (1,):
        raise InvalidArgumentError(
            f"domain_head must return one logit per sample, (batch, 1), but returns {tuple(domain.shape)}; end it with "
            "Dense(1)"
        )
    outputs = {"label": label, "domain": domain}
    # Keras 3.8 looks up the metrics of an output by the name of its layer, not by the key of the output.
    named = {key: keras.layers.Identity(name=key, dtype=output.dtype)(output) for key, output in outputs.items()}
    return keras.Model(features.input, named, name=name)


def _called(role: str, head: Callable, features: keras.KerasTensor) -> Any:
    try:
        return head(features)
    except ValueError as error:
        raise InvalidArgumentError(
            f"{role} does not take features of shape {tuple(features.shape)} (see the error above); give a layer or a model "
            "whose input has this shape"
        ) from error


class DANN:
    """Trains and prunes a domain-adversarial network, and takes care of batches and sample weights.

    Args:
        features, label_head, domain_head, weight: as in `build_dann`. With `MeanDiscrepancy()` as the domain head, the
            network is trained with the maximum mean discrepancy (like DAN).

    Attributes:
        model: the model with two heads, an ordinary Keras model.
        classifier: the label path. It shares the layers of `model`, even while that is pruned. Export this one.
        features: the model that was passed. It shares the layers, too.

    Example:
        >>> import keras, numpy as np, keras_pcp
        >>> x = keras.Input((8, 8, 1))
        >>> y = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(8, 3, activation="relu")(x))
        >>> dann = keras_pcp.adaptation.DANN(keras.Model(x, y), keras.layers.Dense(2), keras.layers.Dense(1))
        >>> dann.compile("sgd")
        >>> source = np.random.rand(32, 8, 8, 1), np.arange(32) % 2
        >>> target = np.random.rand(32, 8, 8, 1)
        >>> pruning = keras_pcp.ProgressivePruning(
        ...     max_macs=0.5, deliver=dann.classifier, validation_data=dann.validation_data(source, target)
        ... )
        >>> history = dann.fit(source, target, epochs=8, batch_size=16, callbacks=[pruning], verbose=0)
        >>> pruning.report.reached, dann.classifier.count_params() < 8 * 10 + 8 * 2 + 2
        (True, True)
    """

    def __init__(self, features: keras.Model, label_head: Any, domain_head: Any, *, weight: float = 1.0):
        count = len(keras.tree.flatten(getattr(features, "input", None)))
        if count != 1:
            raise InvalidArgumentError(
                f"DANN needs features with one input, got {count}; use build_dann and your own batches"
            )
        self.features, self.model = features, build_dann(features, label_head, domain_head, weight=weight)
        self.classifier = keras.Model(self.model.input, self.model.output["label"], name="classifier")
        self.adversarial = not isinstance(domain_head, MeanDiscrepancy)

    def compile(
        self,
        optimizer: Any,
        *,
        loss: Any = None,
        domain_weight: float = 1.0,
        metrics: Any = ("accuracy",),
        **options: Any,
    ) -> None:
        """Compiles `model`.

        Args:
            optimizer: as for `keras.Model.compile`.
            loss: loss of the labels; None: sparse categorical cross-entropy of logits.
            domain_weight: weight of the domain loss.
            metrics: metrics of the labels, with sample weights; pseudo-labels count, too.
            **options: other options of `keras.Model.compile`, except weights of losses and metrics of outputs.

        Raises:
            InvalidArgumentError: with an option, the domain output would influence what is pruned.
        """
        for name in ("loss_weights", "weighted_metrics"):
            if name in options:
                raise InvalidArgumentError(f"DANN sets {name}; use domain_weight, and metrics (of the labels)")
        if isinstance(metrics, dict):
            raise InvalidArgumentError(
                f"metrics must be a list of metrics of the labels; got outputs {sorted(metrics)}"
            )
        if not isinstance(metrics, tuple | list):
            raise checks.refusal("metrics", "a list of metrics of the labels", metrics)
        domain_weight = checks.number("domain_weight", domain_weight, "[0, inf)")
        domain_loss = keras.losses.BinaryCrossentropy(from_logits=True) if self.adversarial else discrepancy_loss
        told = [keras.metrics.MeanMetricWrapper(told_apart, "told_apart")]
        self.model.compile(
            optimizer,
            loss={
                "label": loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                "domain": domain_loss,
            },
            loss_weights={"label": 1.0, "domain": domain_weight},
            weighted_metrics={"label": list(metrics), "domain": told if self.adversarial else []},
            **options,
        )

    def fit(
        self,
        source: Any,
        target: Any,
        *,
        batch_size: int = 128,
        epochs: int = 1,
        pseudo_labels: PseudoLabels | None = None,
        pseudo_weight: float = 1.0,
        validation_data: tuple | None = None,
        seed: int = 0,
        **options: Any,
    ) -> keras.callbacks.History:
        """Trains on batches that are half source and half target.

        The loss is the sum of three: that of the labels on the source, `pseudo_weight` times that of the pseudo-labels on
        the target (if there are any), and that of the domains on both.

        Args:
            source: (x, y): arrays, or a dataset of such batches, which is read into memory once. y are class numbers.
            target: x: an array, or a dataset of batches of x. Labels in it are ignored.
            batch_size: an even number.
            epochs: passes through the larger of the two sets.
            pseudo_labels: how target samples get labels; None: they get none.
            pseudo_weight: weight of the loss of the pseudo-labels.
            validation_data: (x, y), labelled samples to evaluate after each epoch, without the domain loss.
            seed: for the order of the samples.
            **options: other options of `keras.Model.fit`, such as `callbacks`, `verbose` and `initial_epoch`.

        Returns:
            The result of `keras.Model.fit`.

        Raises:
            InvalidArgumentError: the data does not fit, or an option is out of range.
            UnsupportedModelError: the model is distributed over several devices, each of which would see only one domain.
        """
        strategy = getattr(self.model, "distribute_strategy", None)
        if strategy is not None and strategy.num_replicas_in_sync > 1:
            raise UnsupportedModelError(
                f"DANN.fit puts one domain after the other in a batch, and {strategy.num_replicas_in_sync} replicas would "
                "separate them; build the network outside the strategy's scope, or call model.fit with mixed batches"
            )
        pseudo_weight, seed = checks.number("pseudo_weight", pseudo_weight, "[0, inf)"), checks.count("seed", seed, 0)
        if pseudo_labels is not None:
            checks.instance("pseudo_labels", pseudo_labels, PseudoLabels, "a keras_pcp.PseudoLabels")
        if validation_data is not None:
            if not isinstance(validation_data, tuple | list) or len(validation_data) != 2:
                raise InvalidArgumentError(
                    f"DANN.fit takes validation_data=(x, y), got {type(validation_data).__name__}; the function that "
                    "DANN.validation_data returns is for ProgressivePruning"
                )
            x, y = _labelled(validation_data, "validation_data")
            validation_data = _joined(x, y, np.ones(len(x)), x[:0], y[:0], np.ones(0), 0.0)
        batches = _Batches(self, *self._checked(source, target), batch_size, pseudo_labels, pseudo_weight, seed)
        renewal = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: batches.begin_epoch())
        callbacks = [renewal, *keras.tree.flatten(options.pop("callbacks", None) or [])]
        options = {"shuffle": False, "validation_data": validation_data, **options}
        return self.model.fit(batches, epochs=epochs, callbacks=callbacks, **options)

    def _checked(self, source: Any, target: Any) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
        """Returns ((x, y), x of the target) as arrays.

        Raises:
            InvalidArgumentError: source and target do not fit each other or the network.
        """
        (x, y), target = _labelled(source, "source"), take_inputs(target, "target")
        if target.shape[1:] != x.shape[1:]:
            raise InvalidArgumentError(
                f"source and target need inputs of the same shape, got {x.shape} and {target.shape}"
            )
        wanted = keras.tree.flatten(self.classifier.inputs)[0].shape
        if len(wanted) != x.ndim or any(a not in (None, b) for a, b in zip(wanted[1:], x.shape[1:], strict=True)):
            raise InvalidArgumentError(f"the network takes inputs of shape {wanted}, got {x.shape}")
        return (x, y), target

    def validation_data(
        self,
        source: Any,
        target: Any,
        *,
        target_weight: float = 0.5,
        pseudo_labels: PseudoLabels | None = None,
        samples: int | None = 128,
        seed: int = 0,
    ) -> Callable[[], tuple]:
        """Returns labelled source and pseudo-labelled target samples, for `ProgressivePruning(validation_data=...)`.

        Sample weights make every drop `(1 - target_weight)` times the drop on the source plus `target_weight` times the drop
        on the pseudo-labels. The domain output has weight 0, so neither attempts nor gradients see it. The pseudo-labels are
        made again at every moment of pruning. While none of them is sure enough, only the source counts. Parts that use only
        inputs (statistics of batch normalization, criteria on features such as `"thinet"`) see samples of both domains, as
        training does; with `target_weight=1` only the target, and with 0 only the source.

        Args:
            source, target: as in `fit`; not part of the training or test samples.
            target_weight: in [0, 1]; 0 prunes by the source alone.
            pseudo_labels: how target samples get labels; None: `PseudoLabels()`. `PruningReport.draws` says how many passed
                at each moment of pruning and, if `true_labels` are those of `target`, how many were right.
            samples: maximum number of samples of each domain; None: all. If pruning uses fewer samples than this function
                returns (`Measuring(samples=)`), the weighting of drops is only approximate.
            seed: for the draw of samples.

        Returns:
            A function that `ProgressivePruning` calls to get the samples.

        Raises:
            InvalidArgumentError: the data does not fit, or an option is out of range.
        """
        target_weight = checks.number("target_weight", target_weight, "[0, 1]")
        samples, seed = checks.count("samples", samples, optional=True), checks.count("seed", seed, 0)
        pseudo_labels = PseudoLabels() if pseudo_labels is None else pseudo_labels
        checks.instance("pseudo_labels", pseudo_labels, PseudoLabels, "a keras_pcp.PseudoLabels")
        source, target = self._checked(source, target)
        x, y, _ = take_samples(source, samples, seed, "source")
        pseudo_labels.check(len(target))
        x_target, place, _ = take_samples((target, np.arange(len(target))), samples, seed, "target")
        return _Mixed(self.classifier, (x, y), x_target, place, target_weight, pseudo_labels)


class _Mixed:
    """Labelled source and pseudo-labelled target samples; `history` describes the pseudo-labels of each call."""

    def __init__(self, classifier: keras.Model, source: tuple, target: np.ndarray, place: np.ndarray, weight, labels):
        self.classifier, self.source, self.target, self.place = classifier, source, target, place
        self.weight, self.labels = weight, labels
        self.history: list[dict[str, float]] = []

    def __call__(self) -> tuple:
        """Makes the pseudo-labels and returns (x, y, sample_weight)."""
        (x, y), theirs = self.source, self.target
        labels, weights = self.labels.assign(self.classifier.predict(theirs, verbose=0))
        self.history.append(self.labels.judged(labels, weights, self.place))
        share = self.weight if weights.any() else 0.0
        if share == 1:
            x, y = x[:0], y[:0]
        elif self.weight == 0:
            theirs, labels, weights = theirs[:0], labels[:0], weights[:0]
        total = len(x) + len(theirs)
        ours = np.full(len(x), (1 - share) * total / max(len(x), 1))
        return _joined(x, y, ours, theirs, labels, weights * share * total / max(weights.sum(), 1e-9), 0.0)


class _Batches(keras.utils.PyDataset):
    """Batches that are half source and half target; an epoch is one pass through the larger set."""

    def __init__(self, dann: DANN, source: tuple, target: np.ndarray, size: int, pseudo_labels, pseudo_weight, seed):
        super().__init__()
        if checks.count("batch_size", size, 2) % 2:
            raise checks.refusal("batch_size", "even, half for each domain", size)
        if min(len(source[0]), len(target)) < size // 2:
            raise InvalidArgumentError(
                f"half a batch of {size} is more than the number of samples: {len(source[0])} source, {len(target)} target"
            )
        if pseudo_labels:
            pseudo_labels.check(len(target))
        self.dann, self.source, self.target, self.half = dann, source, target, size // 2
        self.pseudo_labels, self.pseudo_weight = pseudo_labels, pseudo_weight
        self.rng, self.epoch = np.random.default_rng(seed), 0
        self.orders = [self.order(len(source[0])), self.order(len(target))]
        self.labels, self.weights = np.zeros(len(target), int), np.zeros(len(target), "float32")

    def __len__(self) -> int:
        return math.ceil(max(len(self.source[0]), len(self.target)) / self.half)

    def order(self, count: int) -> np.ndarray:
        """Returns enough shuffled numbers below `count` for one epoch."""
        turns = math.ceil(len(self) * self.half / count)
        return np.concatenate([self.rng.permutation(count) for _ in range(turns)])

    def label(self) -> None:
        """Makes new pseudo-labels."""
        outputs = self.dann.classifier.predict(self.target, batch_size=2 * self.half, verbose=0)
        self.labels, self.weights = self.pseudo_labels.assign(outputs)
        self.pseudo_labels.history.append(self.pseudo_labels.judged(self.labels, self.weights))

    def __getitem__(self, number: int) -> tuple:
        (x, y), rows = self.source, slice(number * self.half, (number + 1) * self.half)
        ours, theirs = (order[rows] for order in self.orders)
        weights = 2 * self.pseudo_weight * self.weights[theirs]  # twice: the mean is over both halves
        source = x[ours], y[ours], np.full(self.half, 2.0)
        return _joined(*source, self.target[theirs], self.labels[theirs], weights, 1.0)

    def begin_epoch(self) -> None:
        """Shuffles, and makes new pseudo-labels if they are due."""
        self.orders = [self.order(len(self.source[0])), self.order(len(self.target))]
        if self.pseudo_labels and self.epoch % self.pseudo_labels.refresh_every == 0:
            self.label()
        self.epoch += 1


def _joined(x, y, weights, x_target, labels, target_weights, domain_weight: float) -> tuple:
    """Joins source and target to (x, y, sample_weight) of the model with two heads."""
    domain = np.repeat([SOURCE, TARGET], [len(x), len(x_target)]).astype("float32")[:, None]
    label_weights = np.concatenate([weights, target_weights]).astype("float32")
    return (
        np.concatenate([x, x_target]),
        {"label": np.concatenate([y, labels]), "domain": domain},
        {"label": label_weights, "domain": np.full(len(domain), domain_weight, "float32")},
    )


def told_apart(y_true, y_pred):
    """Metric: the share of samples whose domain the sign of the logit predicts correctly."""
    return keras.ops.mean(keras.ops.cast((y_pred > 0) == (y_true > 0.5), "float32"), axis=-1)


def _labelled(data: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    x, y, weight = take_samples(data, None, 0, name)
    if not isinstance(x, np.ndarray):
        raise InvalidArgumentError(f"{name} must have one array of inputs, got {type(x).__name__}")
    if weight is not None:
        raise InvalidArgumentError(f"{name} has sample weights, which DANN does not use; pass only (x, y)")
    if not isinstance(y, np.ndarray) or y.dtype.kind not in "biuf" or y.size != len(x) or not np.array_equal(y, y // 1):
        raise InvalidArgumentError(
            f"{name}: labels must be class numbers, one per sample, got "
            + (checks.shown(y) if not isinstance(y, np.ndarray) else f"shape {y.reshape(len(x), -1).shape}")
        )
    return x, y.reshape(-1).astype(int)
