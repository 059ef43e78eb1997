"""Checks before a `fit` begins: the other callbacks, and the model that fractions refer to."""

import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import keras

from keras_pcp.errors import InvalidArgumentError
from keras_pcp.select.problem import Limits
from keras_pcp.support.models import iterations_of


@dataclass(frozen=True)
class _FirstSeen:
    """A model as a callback first saw it: its number of weights, the part that was counted, and the cost of it."""

    size: int
    part: weakref.ref | None
    cost: Mapping[str, float]


# A Keras file has no place for this. It holds weights, layers and the arguments of `compile`.
_FIRST_SEEN: weakref.WeakKeyDictionary[keras.Model, _FirstSeen] = weakref.WeakKeyDictionary()


def warn_of_weight_files(others: Sequence[keras.callbacks.Callback], bounds: Mapping[str, float]) -> None:
    """Warns of callbacks that save weights only: these do not fit the full-size model after pruning."""
    wrong = sorted(
        {
            type(one).__name__ + ("(save_weights_only=True)" if hasattr(one, "save_weights_only") else "")
            for one in others
            if isinstance(one, keras.callbacks.BackupAndRestore) or getattr(one, "save_weights_only", False)
        }
    )
    if wrong:
        warnings.warn(
            f"{' and '.join(wrong)} in this fit saves weights only, which do not fit the full-size model any more once it "
            "has been pruned. To continue after a crash, save whole models with "
            "keras.callbacks.ModelCheckpoint('x.keras'), load the last one with keras.models.load_model, and give "
            f"limits as ints: {_as_arguments(bounds)}",
            stacklevel=2,
        )


def check_fractions(
    model: keras.Model,
    deliver: keras.Model | None,
    limits: Limits,
    now: Mapping[str, float],
    bounds: Mapping[str, float],
) -> None:
    """Makes sure that a fraction refers to the unpruned model, as far as that can be known.

    Args:
        model: the model in `fit`.
        deliver: the part of the model that is counted, or None.
        limits: the limits that were given.
        now: the current cost, {"macs": ..., "params": ..., "bytes": ...}.
        bounds: the limits as absolute numbers; fractions are taken of the current cost.

    Raises:
        InvalidArgumentError: a limit is a fraction, and the model was pruned in this process.
    """
    fractions = {k: v for k, v in limits.given().items() if isinstance(v, float)}
    size = model.count_params()
    known = _FIRST_SEEN.get(model)
    if fractions and known is not None and known.size > size:
        same_part = (known.part and known.part()) is deliver
        were = {k: v * known.cost[k] for k, v in fractions.items()} if same_part else {}
        raise InvalidArgumentError(
            f"model {model.name!r} was pruned before in this process, so it is not clear what {_as_arguments(fractions)} "
            f"is a fraction of. Give ints: {_as_arguments({k: bounds[k] for k in fractions})} for that part of the model "
            "as it is now"
            + (f", {_as_arguments(were)} for that part of the unpruned one" if were else "")
            + "; or use the callback that pruned it, which continues towards its own limits"
        )
    optimizer = getattr(model, "optimizer", None)
    steps = iterations_of(optimizer)
    if fractions and steps and known is None:
        warnings.warn(
            f"model {model.name!r} has been trained before ({steps} steps). If it has been pruned before, too, "
            f"{_as_arguments(fractions)} does not mean what it meant then: it is a fraction of the model as it is now, "
            f"{', '.join(f'{now[k]:,.0f} {k}' for k in fractions)}. Give ints, which always mean the same: "
            f"{_as_arguments({k: bounds[k] for k in fractions})} is what it means now",
            stacklevel=2,
        )
    part = None if deliver is None else weakref.ref(deliver)
    _FIRST_SEEN.setdefault(model, _FirstSeen(size, part, now))


def _as_arguments(bounds: Mapping[str, float]) -> str:
    return ", ".join(f"max_{k}={v if isinstance(v, float) and v < 1 else int(v)}" for k, v in bounds.items())
