"""Stage-wise channel pruning: one network that holds all narrower ones, trained stage by stage with itself as the teacher.

Zhang, Yu, Rong, Ou: Stage-wise Channel Pruning for Model Compression, arXiv 2011.04908 v1 (2020); v2 (2021) as Effective
Model Compression via Stage-wise Pruning.

Known of the paper, from its two abstracts: a super-net whose sub-nets share weights gives wrong scores, because there are
too many sub-nets (training is not full), and because channels are drawn with unequal probability (training is not fair).
The network is cut into stages, and each stage has a super-net of its own. The unpruned full net supervises training and
search by in-place distillation. In every iteration, the full net and the tiny net are drawn, too. Formulas, widths,
stages, losses and tables are not public. What follows is ours, except where a source is named.

In every training step:
    1. The full net runs once. Its loss is the compiled one. Its features at the ends of the stages are the teacher's.
    2. The tiny net and `samples` random sub-nets are drawn (the sandwich rule of Yu & Huang, Universally Slimmable
       Networks, ICCV 2019, arXiv 1903.05134). Each stage of a sub-net reads the full net's features, without gradient,
       and is taught by the full net's features at its end: squared error in units of their mean square. At the outputs of
       the model, it is the distillation loss. Channels that a sub-net leaves out do not count. With `stage_inputs="own"`,
       which is ours, a stage reads what the sub-net's earlier stages have made instead.
    3. The channels of a group have an order, by default that of the L1 norm; a sub-net of a width has the first ones. With
       `sampling="fair"`, random sub-nets get random channels instead, so that all train equally often.

In a search, the score of a sub-net is a sum over its stages of how far the outputs are from the full net's if only this
stage is narrowed (see `scoring`). The best sum is found by dynamic programming over what has been scored; what is scored
depends on estimates (see `growing` and `estimating`, with their values).

Groups that reach over a cut, such as a residual stream, have one width on both sides. What the next stage loses because
it cannot read the missing channels is part of its own error.

Dropout draws other masks for a sub-net than for the full net that teaches it. So with dropout, the distillation loss never
gets to 0.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import keras
import numpy as np
import tensorflow as tf
from keras import ops, tree

from keras_pcp.criteria import score_channels
from keras_pcp.errors import InvalidArgumentError
from keras_pcp.graph.build import OnUnknown, notes_of
from keras_pcp.graph.channel_graph import ChannelGraph
from keras_pcp.graph.cost import call_macs
from keras_pcp.graph.grouping import grouped, places_in_tensors
from keras_pcp.graph.program import program_of
from keras_pcp.graph.segments import Segment
from keras_pcp.graph.trace import Trace, arrange_inputs, functional_graph
from keras_pcp.repair.distillation import Distillation
from keras_pcp.supernet.gating import Axis, Gating
from keras_pcp.supernet.search import search
from keras_pcp.supernet.stages import stages
from keras_pcp.supernet.tables import StagePart, parts_of, tied_groups
from keras_pcp.support import checks, internals
from keras_pcp.support.models import check_model

Sampling = Literal["prefix", "fair"]
StageInputs = Literal["full", "own"]
RATIOS = tuple(i / 10 for i in range(1, 11))
_SAVED = (
    "num_stages",
    "cut_after",
    "ratios",
    "samples",
    "distillation_weight",
    "sampling",
    "stage_inputs",
    "frozen_layers",
    "on_unknown",
    "seed",
    "name",
)


@dataclass(frozen=True, eq=False)
class Plan:
    """What a super-net knows about its model.

    Attributes:
        graph: its channel graph.
        trace: its calls.
        stages: the stages.
        gating: its groups, numbered.
        gated: (number of a weight, axis) for all that reads channels.
        channels: {number of a tensor: axis of its channels}.
        levels: the widths that each group may have, (groups, levels), the least first.
        parts: the part of the graph that belongs to each stage.
    """

    graph: ChannelGraph
    trace: Trace
    stages: tuple[Segment, ...]
    gating: Gating
    gated: tuple[tuple[int, Axis], ...]
    channels: Mapping[int, Axis]
    levels: np.ndarray
    parts: tuple[StagePart, ...]

    @property
    def tied(self) -> tuple[str, ...]:
        """Names of the groups that reach over a cut, so that the stages on both sides have the same width."""
        return tuple(self.gating.names[group] for group in tied_groups(self.parts))


@keras.saving.register_keras_serializable("keras_pcp")
class StagewiseSupernet(keras.Model):
    """Trains a model together with all its narrower versions; `search` then finds the best one.

    It is a Keras model: `compile`, `fit`, `evaluate`, callbacks and saving work as ever. `fit` trains `model` itself, in
    place. `evaluate` and `predict` use the full width. With `num_stages=1` it is a plain slimmable super-net.

    Args:
        model: a built Functional or Sequential model, trained or not.
        num_stages: number of stages, cut where the resolution changes.
        cut_after: names of layers after which to cut instead.
        ratios: widths of a group, as fractions of its channels, in (0, 1]; 1 is added.
        samples: number of random sub-nets in every step, beside the full net and the tiny one; at least 0.
        distillation_weight: weight of the distillation next to the compiled loss, above 0.
        loss: a `keras.distillation` loss for the outputs of the model. Default: `LogitsDistillation` with temperature 1 if
            the super-net is compiled with a categorical cross-entropy from logits, else the error that is used for features.
        criterion: gives the channels of a group their order, as in `score_channels`; from the weights only.
        sampling: `"prefix"`: a sub-net has the first channels in this order. `"fair"`: random sub-nets have random channels.
        stage_inputs: what a stage of a sub-net reads in training. `"full"`: the features of the full net, so that each stage
            trains by itself. `"own"`: what the stages before it have made, through which gradients pass on.
        frozen_layers, on_unknown: as in `build_graph`.
        seed: for the draw of sub-nets.

    Raises:
        InvalidArgumentError: an argument is out of range, or the model cannot be cut like this.
        UnsupportedModelError: the model has no functional graph, or has a layer without a rule.

    References:
        Zhang et al., arXiv 2011.04908. What differs is in the docstring of this module.

    Example:
        >>> import keras, numpy as np, keras_pcp
        >>> x = keras.Input((8, 8, 3))
        >>> y = keras.layers.Conv2D(8, 3, padding="same", activation="relu")(x)
        >>> y = keras.layers.Conv2D(8, 3, 2, padding="same", activation="relu")(y)
        >>> model = keras.Model(x, keras.layers.Dense(10)(keras.layers.Flatten()(y)))
        >>> supernet = keras_pcp.StagewiseSupernet(model, num_stages=2)
        >>> supernet.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> images, labels = np.random.rand(32, 8, 8, 3), np.arange(32) % 10
        >>> history = supernet.fit(images, labels, verbose=0)
        >>> sorted(history.history)
        ['distillation', 'loss']
    """

    def __init__(
        self,
        model: keras.Model,
        num_stages: int = 3,
        *,
        cut_after: Iterable[str] = (),
        ratios: Sequence[float] = RATIOS,
        samples: int = 2,
        distillation_weight: float = 1.0,
        loss: Any = None,
        criterion: Any = "l1",
        sampling: Sampling = "prefix",
        stage_inputs: StageInputs = "full",
        frozen_layers: Iterable[str] = (),
        on_unknown: OnUnknown = "error",
        seed: int = 0,
        name: str | None = None,
    ):
        check_model("model", model)
        checks.count("num_stages", num_stages)
        checks.count("samples", samples, 0)
        checks.number("distillation_weight", distillation_weight, "(0, inf)")
        checks.choice("sampling", sampling, get_args(Sampling))
        checks.choice("stage_inputs", stage_inputs, get_args(StageInputs))
        checks.count("seed", seed, 0)
        super().__init__(name=name or f"{model.name}_supernet", dtype=model.dtype_policy, autocast=False)
        self.model, self.samples, self.distillation_weight = model, samples, distillation_weight
        self.sampling, self.stage_inputs, self.seed = sampling, stage_inputs, seed
        self.cut_after = checks.names("cut_after", cut_after)
        self.frozen_layers = checks.names("frozen_layers", frozen_layers)
        self.ratios, self.num_stages, self.on_unknown = _ratios(ratios), num_stages, on_unknown
        self.loss_of_outputs = None if loss is None else Distillation(1.0, loss).loss
        self._analyse(criterion)
        self.distilled = keras.metrics.Mean("distillation")

    def _analyse(self, criterion: Any) -> None:
        program = program_of(self.model)
        index, notes = notes_of(program, self.on_unknown, self.frozen_layers)
        graph = grouped(program, index, notes)
        if not len(graph):
            raise InvalidArgumentError(
                f"model {self.model.name!r} has no channels that can be pruned; print(build_graph(model))"
            )
        macs = np.nan_to_num(call_macs(graph, program))
        gating = Gating.of(graph)
        found = stages(program, macs, self.num_stages, self.cut_after)
        channels = gating.tensors(places_in_tensors(notes))
        levels = np.array([_levels(g, self.ratios) for g in graph], "int32")
        parts = parts_of(graph, program.trace, program.names, found, gating, channels)
        gated = tuple(gating.weights(graph))
        self.plan = Plan(graph, program.trace, tuple(found), gating, gated, channels, levels, tuple(parts))
        self.num_stages = len(found)
        ranks = gating.ranks(graph, score_channels(self.model, graph, criterion))
        state = {"trainable": False, "dtype": "int32", "aggregation": "only_first_replica"}
        self.ranks = self.add_weight(ranks.shape, initializer=lambda shape, dtype=None: ranks, name="ranks", **state)
        self.step = self.add_weight((), initializer="zeros", name="step", **state)
        state = {"initializer": "ones", "trainable": False, "aggregation": "only_first_replica"}
        self.stage_weights = self.add_weight(
            (len(found),), name="stage_weights", dtype="float32", autocast=False, **state
        )
        self.built = True

    def teach(self, *stages: int) -> None:
        """Lets only some stages of sub-nets be taught from now on, by their numbers from 0; without any, all.

        Nothing is traced again. The full net trains as ever.

        Raises:
            InvalidArgumentError: there is no such stage.

        Example:
            >>> import keras, keras_pcp
            >>> x = keras.Input((8,))
            >>> model = keras.Model(x, keras.layers.Dense(2)(keras.layers.Dense(16, activation="relu")(x)))
            >>> supernet = keras_pcp.StagewiseSupernet(model, num_stages=1)
            >>> supernet.teach(0)
        """
        count = len(self.plan.stages)
        for stage in stages:
            if checks.count("a stage", stage, 0) >= count:
                raise InvalidArgumentError(f"there are {count} stages, 0 to {count - 1}, so no stage {stage}")
        self.stage_weights.assign(np.isin(np.arange(count), stages or range(count)).astype("float32"))

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the outputs of the full net. In training, adds the loss of the sub-nets."""
        values = dict(zip(self.plan.trace.inputs, arrange_inputs(self.plan.trace, inputs), strict=True))
        for stage in self.plan.stages:
            values |= stage.run(self.plan.trace, values)
        if training:
            taught = self.taught({i: ops.stop_gradient(value) for i, value in values.items()})
            self.add_loss(self.distillation_weight * taught)
            self.distilled.update_state(taught)
        outputs = [values[i] for i in self.plan.trace.outputs]
        return tree.pack_sequence_as(functional_graph(self.model).output, outputs)

    def taught(self, features: dict[int, Any]) -> Any:
        """Returns the distillation loss of this step's sub-nets: the sum over stages, as a mean over sub-nets."""
        losses = []
        for widths, ranks in self.draw():
            values = features
            with self.narrowed(widths, ranks):
                for number, stage in enumerate(self.plan.stages):
                    made, weight = stage.run(self.plan.trace, values), self.stage_weights[number]
                    values = values | made if self.stage_inputs == "own" else values
                    losses += [weight * self.error(i, made[i], features[i], widths, ranks) for i in stage.outputs]
        return ops.sum(ops.stack(losses)) / (1 + self.samples)

    def draw(self) -> list[tuple[Any, Any]]:
        """Returns (widths, ranks) of the tiny net and of the random sub-nets of this step."""
        self.step.assign(self.step + 1)
        levels, ranks = ops.convert_to_tensor(self.plan.levels), ops.convert_to_tensor(self.ranks)
        drawn = [(levels[:, 0], ranks)]
        for number in range(self.samples):
            seed = ops.stack([self.seed * (1 + self.samples) + number, self.step.value])
            chosen = tf.random.stateless_uniform(levels.shape[:1], seed, 0, levels.shape[1], tf.int32)
            widths = tf.gather(levels, chosen, batch_dims=1)
            drawn.append((widths, self._shuffled(seed) if self.sampling == "fair" else ranks))
        return drawn

    def _shuffled(self, seed: Any) -> Any:
        """Returns a random order of the channels of each group."""
        group = np.repeat(np.arange(len(self.plan.gating.sizes)), self.plan.gating.sizes)
        order = ops.argsort(tf.random.stateless_uniform([len(group)], seed) + group.astype("float32"))
        return ops.argsort(order) - ops.convert_to_tensor(self.plan.gating.starts[group].astype("int32"))

    def narrowed(
        self,
        widths: Any,
        ranks: Any,
        state: Iterable[tuple[keras.Variable, Any]] = (),
        only: Collection[int] | None = None,
    ) -> Any:
        """Makes the model compute as a sub-net in a `with` block; nothing that it assigns there lasts.

        With `only`, numbers of weights, channels are left out only where these weights read them.
        """
        values: dict[int, Any] = {}
        for i, axis in (entry for entry in self.plan.gated if only is None or entry[0] in only):
            weight = self.model.weights[i]
            value = values[i] if i in values else internals.as_stored(weight)
            values[i] = ops.where(axis.mask(widths, ranks, len(weight.shape)), value, ops.zeros_like(value))
        return internals.stateless([*((self.model.weights[i], v) for i, v in values.items()), *state])

    def error(self, tensor: int, student: Any, teacher: Any, widths: Any, ranks: Any) -> Any:
        """Returns how far a sub-net's tensor is from the full net's."""
        if tensor in self.plan.trace.outputs and self.teaching_loss is not None:
            return ops.cast(self.teaching_loss.compute_loss(teacher, student), "float32")
        return self.relative_error(tensor, student, teacher, widths, ranks)

    @property
    def teaching_loss(self) -> Any:
        """The `keras.distillation` loss by which the full net teaches at the outputs; None if it is the relative error."""
        return self.loss_of_outputs or _default_loss(self.loss)

    def relative_error(self, tensor: int, student: Any, teacher: Any, widths: Any, ranks: Any) -> Any:
        """Returns the squared error in units of the mean square, over the channels that the sub-net has."""
        student, teacher = ops.cast(student, "float32"), ops.cast(teacher, "float32")
        if tensor in self.plan.channels:
            mask = self.plan.channels[tensor].mask(widths, ranks, len(teacher.shape))
            student, teacher = (ops.where(mask, value, 0.0) for value in (student, teacher))
        return ops.sum(ops.square(student - teacher)) / (ops.sum(ops.square(teacher)) + keras.config.epsilon())

    def test_step(self, *arguments: Any) -> dict[str, Any]:
        """As in `keras.Model`. Sub-nets do not run in an evaluation, so it has no `distillation`."""
        return {name: value for name, value in super().test_step(*arguments).items() if name != "distillation"}

    search = search

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor, JSON-ready. The order of the channels is saved with the weights."""
        parts = {"model": self.model, "loss": self.loss_of_outputs}
        serialized = {k: keras.saving.serialize_keras_object(v) for k, v in parts.items()}
        return {name: getattr(self, name) for name in _SAVED} | serialized

    def load_own_variables(self, store: Any) -> None:
        """Loads the order of the channels, among others.

        Raises:
            InvalidArgumentError: the file was written for other groups with as many channels. (With another number, Keras
                refuses the shape.) `keras.models.load_model` makes it a ValueError with this text.
        """
        super().load_own_variables(store)
        if not self.plan.gating.are_ranks(internals.array_of(self.ranks)):
            raise InvalidArgumentError(
                f"the file of super-net {self.name!r} was written by a version of keras_pcp that finds other groups of "
                "channels in this network; train the super-net again"
            )

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "StagewiseSupernet":
        """Inverse of `get_config`."""
        parts = {k: keras.saving.deserialize_keras_object(config[k], custom_objects) for k in ("model", "loss")}
        return cls(**{**config, **parts})


def _ratios(given: Any) -> list[float]:
    found = checks.items(given)
    if not found:
        raise checks.refusal("ratios", "fractions in (0, 1], such as (0.25, 0.5, 1.0)", given)
    return sorted({checks.number("a number in ratios", ratio, "(0, 1]") for ratio in found} | {1.0})


def _levels(group: Any, ratios: Sequence[float]) -> list[int]:
    return [max(1, round(group.num_channels * ratio)) for ratio in ratios]


def _default_loss(compiled: Any) -> Any:
    """Returns the distillation loss that belongs to a compiled loss: one for logits, or None."""
    losses = tree.flatten(compiled)
    crossentropies = (keras.losses.CategoricalCrossentropy, keras.losses.SparseCategoricalCrossentropy)
    from_logits = [isinstance(one, crossentropies) and one.from_logits for one in losses]
    if not losses or not all(from_logits) or not hasattr(keras, "distillation"):
        return None
    return keras.distillation.LogitsDistillation(temperature=1.0, loss=keras.losses.KLDivergence())
