"""What pruning compares: the loss, a metric, several of them, or a function of the model."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from typing import Any, Literal

import keras
import numpy as np

from keras_pcp.errors import InvalidArgumentError
from keras_pcp.support import checks, internals

Monitored = str | Mapping[str, float] | Callable[[keras.Model], float] | None

_UP = {
    "acc",
    "accuracy",
    "auc",
    "precision",
    "recall",
    "sensitivity",
    "specificity",
    "f1",
    "f1score",
    "fbeta",
    "iou",
    "io",
    "miou",
    "r2",
    "dice",
}
_DOWN = {"loss", "error", "mae", "mse", "rmse"}


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """How the model is measured when pruning is decided.

    Attributes:
        samples: number of validation samples to use; None: all. Twice as many take about twice as long. Take more if the
            metric depends on a few of them, as with rare classes. Of a dataset, the first ones are taken, so shuffle it.
        monitor: what is compared. If two values are equal, the loss decides. A string is the name of a compiled metric
            or loss, as `model.evaluate` gives it, with or without `val_`. `{name: weight}` is the sum of several, each
            with the sign that makes higher better. A function `evaluate(model) -> float` is called for every attempt,
            with the model masked as if pruned. `validation_data` is then only used for criteria and for statistics of
            batch normalization. None is the mean of the metrics for which higher is better, if every output that the
            loss depends on has such a metric, and otherwise the loss. The choice is printed when `fit` starts, and is
            in `report.monitor`. A model with a custom `test_step` is evaluated by it, on `(x, y)` or `(x, y,
            sample_weight)` in batches of 256. A model with a custom `train_step` but no custom `test_step` has no
            default. Functions and `test_step` always see all samples.
        mode: `"max"` if a higher `monitor` is better, `"min"` if a lower one is. `"auto"` decides by the metric or its
            name, and takes a function as `"max"`. In reports, metrics are negative if lower is better.
        reestimate_batch_norm: whether batch normalization gets statistics that fit the current weights before the model
            is measured. The old ones are restored afterwards.
        seed: for the draw of samples and for random criteria.

    Raises:
        InvalidArgumentError: an option is out of range or has the wrong type.

    Example:
        >>> import keras_pcp
        >>> keras_pcp.Measuring(samples=None, monitor={"accuracy": 1.0, "box_mae": 0.1}).mode
        'auto'
    """

    samples: int | None = 256
    monitor: Monitored = None
    mode: Literal["auto", "min", "max"] = "auto"
    reestimate_batch_norm: bool = True
    seed: int = 0

    def __post_init__(self):
        checks.count("samples", self.samples, optional=True)
        checks.flag("reestimate_batch_norm", self.reestimate_batch_norm)
        checks.count("seed", self.seed, 0)
        if self.mode not in ("auto", "min", "max"):
            raise InvalidArgumentError(f"mode must be 'auto', 'min' or 'max', got {self.mode!r}")
        known = self.monitor is None or isinstance(self.monitor, str | Mapping) or callable(self.monitor)
        if not known:
            raise InvalidArgumentError(
                "monitor must be the name of a metric, {name: weight}, a function of the model, or None; got "
                f"{self.monitor!r}"
            )
        if self.monitor is None and self.mode != "auto":
            raise InvalidArgumentError(f"mode={self.mode!r} needs monitor=, the value that it applies to")
        if isinstance(self.monitor, Mapping):
            wrong = [w for w in self.monitor.values() if not (isinstance(w, Real) and 0 < w < np.inf)]
            if wrong or not self.monitor:
                raise InvalidArgumentError(
                    f"monitor must give each metric a weight above 0, got {dict(self.monitor)!r}"
                )


@dataclass(frozen=True)
class Measure:
    """What `monitor` means for a certain model, with signs that make higher better.

    Attributes:
        text: a description for users.
        weights: {name of a result: weight in the sum, negative where lower is better}.
        function: if given, measures the model instead.
    """

    text: str
    weights: Mapping[str, float] = field(default_factory=dict)
    function: Callable[[keras.Model], float] | None = None

    def of(self, results: Mapping[str, Any]) -> Any:
        """Returns the value for the results of an evaluation.

        Example:
            >>> float(Measure("accuracy - 2 * mae", {"accuracy": 1.0, "mae": -2.0}).of({"accuracy": 0.75, "mae": 0.25}))
            0.25
        """
        return sum(weight * keras.ops.mean(results[name]) for name, weight in self.weights.items())


@dataclass(frozen=True)
class Output:
    """An output of a model.

    Attributes:
        names: possible beginnings of the names of its results.
        trained: whether the loss depends on it.
    """

    names: Collection[str]
    trained: bool = True


def is_own(model: keras.Model, step: str) -> bool:
    """Returns whether a model has a custom `train_step` or `test_step`."""
    return getattr(getattr(model, step, None), "__func__", None) is not getattr(keras.Model, step)


def resolve(
    measuring: Measuring, model: keras.Model, results: Sequence[str], outputs: Callable[[], Sequence[Output]]
) -> Measure:
    """Returns what a monitor means for a model.

    Args:
        measuring: the options, with the monitor.
        model: the compiled model.
        results: names of the results of an evaluation.
        outputs: function that returns the outputs of the model; it is called only for the default.

    Raises:
        InvalidArgumentError: a name is unknown, it is not known whether higher is better, or there is no default.
    """
    asked = measuring.monitor
    if callable(asked):
        sign = -1.0 if measuring.mode == "min" else 1.0
        return Measure(f"{_called(asked)} ({_better(sign)})", function=partial(_value, asked, sign))
    if asked is None:
        return _default(model, results, outputs)
    weights = {asked: 1.0} if isinstance(asked, str) else dict(asked)
    signed: dict[str, float] = {}
    for name, weight in weights.items():
        found = _found(name, results)
        if found in signed:
            raise InvalidArgumentError(f"monitor names {found!r} twice: {list(weights)}")
        signed[found] = weight * _sign(found, measuring.mode, model)
    if len(signed) == 1:
        return Measure(f"{found} ({_better(signed[found])})", signed)
    terms = "".join(f" {'+' if w > 0 else '-'} {abs(w):g} * {name}" for name, w in signed.items())
    return Measure(f"{terms.removeprefix(' + ').strip()} ({_better(1)})", signed)


def _default(model: keras.Model, results: Sequence[str], outputs: Callable[[], Sequence[Output]]) -> Measure:
    """Returns the mean of the metrics for which higher is better, or the loss if a trained output has none."""
    if is_own(model, "train_step") and not is_own(model, "test_step"):
        raise InvalidArgumentError(
            f"model {model.name!r} has its own train_step, so its compiled loss on (x, y) may not be what it is trained "
            "for. Say what pruning compares: pass monitor='loss' if that loss counts, or the name of a metric "
            f"({', '.join(n for n in results if n != 'loss') or 'none is compiled'}), or a function monitor=evaluate "
            "that returns a number for the model; or give the model its own test_step"
        )
    owners = outputs()
    better = [name for name in results if direction(name, model, owners) == "up"]
    if len(owners) > 1:
        better = [n for n in better if (owner := _owner(n, owners)) is not None and owner.trained]
        without = [o for o in owners if o.trained and not any(_owner(n, owners) is o for n in better)]
    else:
        without = [] if better else list(owners)
    if better and not without:
        names = better[0] if len(better) == 1 else f"mean of {', '.join(better)}"
        return Measure(f"{names} ({_better(1)})", dict.fromkeys(better, 1 / len(better)))
    if "loss" not in results:
        raise InvalidArgumentError(
            f"test_step of model {model.name!r} gives no 'loss', only {', '.join(results) or 'nothing'}; say with "
            "monitor= (and mode=) which of them pruning compares"
        )
    which = f"output {min(without[0].names)!r}" if len(owners) > 1 and without else "the model"
    why = f"{which} has no metric for which higher is better"
    return Measure(f"loss ({_better(-1)}), since {why}", {"loss": -1.0})


def direction(name: str, model: keras.Model, outputs: Sequence[Output] = ()) -> str | None:
    """Returns "up" if higher is better, "down" if lower is, None if neither the metric nor its name says so."""
    own = name.lower()
    for prefix in _prefixes(outputs if len(outputs) > 1 else ()):
        if own.startswith(prefix):
            own = own.removeprefix(prefix)
            break
    metric = _metrics(model).get(name)
    said = None if metric is None else internals.direction_of(metric)
    words = set(re.split(r"[^a-z0-9]+", own))
    by_name = {"up" for _ in words & _UP} | {"down" for _ in words & _DOWN}
    return said or (by_name.pop() if len(by_name) == 1 else None)


def _prefixes(outputs: Sequence[Output]) -> list[str]:
    return sorted((f"{name}_".lower() for o in outputs for name in o.names), key=len, reverse=True)


def _owner(name: str, outputs: Sequence[Output]) -> Output | None:
    """Returns the output that a result belongs to: of the outputs whose name it begins with, the longest name wins."""
    fitting = [(len(n), o) for o in outputs for n in o.names if name.startswith(f"{n}_")]
    return max(fitting, key=lambda pair: pair[0])[1] if fitting else None


def _metrics(model: keras.Model) -> dict[str, keras.metrics.Metric]:
    """Returns the metrics of a model by the names of their results."""
    found: dict[str, keras.metrics.Metric] = {}
    for metric in model.metrics:
        inner = getattr(metric, "metrics", None)
        if isinstance(inner, list) and inner:  # the compiled metrics
            names = list(metric.result())
            found.update(zip(names, inner, strict=True) if len(names) == len(inner) else ())
        else:
            found[metric.name] = metric
    return found


def _found(name: str, results: Sequence[str]) -> str:
    for tried in (name, name.removeprefix("val_") if isinstance(name, str) else name):
        if tried in results:
            return tried
    raise InvalidArgumentError(f"monitor {name!r} is not among what evaluating the model gives: {', '.join(results)}")


def _sign(name: str, mode: str, model: keras.Model) -> float:
    known = {"max": "up", "min": "down"}.get(mode) or direction(name, model)
    if known is None:
        raise InvalidArgumentError(
            f"it is not known whether higher is better for {name!r}; give mode='max' if it is, or mode='min'"
        )
    return 1.0 if known == "up" else -1.0


def _value(function: Callable[[keras.Model], float], sign: float, model: keras.Model) -> float:
    value = function(model)
    try:
        return sign * float(value)
    except (TypeError, ValueError):
        raise InvalidArgumentError(
            f"monitor {_called(function)} must return one number, got {type(value).__name__} {value!r}"
        ) from None


def _called(function: Callable) -> str:
    return getattr(function, "__qualname__", None) or type(function).__qualname__


def _better(sign: float) -> str:
    return "higher is better" if sign > 0 else "lower is better"
