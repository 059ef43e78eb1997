"""The checkpoint of a search for widths: whose it is, and what a damaged one does."""

import dataclasses
import functools
import json
from types import FunctionType

import keras
import numpy as np
import pytest

import keras_pcp
from keras_pcp.errors import InvalidArgumentError
from keras_pcp.search.checkpoint import identify
from keras_pcp.strategies.progressive import Progressive

SCALE = 2.0


@pytest.fixture(scope="module")
def search():
    """A search on a tiny model, to be given a checkpoint and a criterion."""
    keras.utils.set_random_seed(0)
    i = keras.Input((6,))
    hidden = keras.layers.Dense(6, activation="relu", name="hidden")(i)
    model = keras.Model(i, keras.layers.Dense(2)(hidden))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data = np.random.default_rng(0).normal(size=(32, 6)), np.arange(32) % 2
    return functools.partial(
        keras_pcp.search_widths,
        model,
        max_macs=0.6,
        validation_data=data,
        verbose=False,
        strategy=Progressive(step=0.2),
    )


@pytest.fixture
def saved(search, tmp_path):
    file = tmp_path / "search.json"
    search(checkpoint=file)
    return file


def by_order(group, statistics, sign=1.0):
    return sign * np.arange(group.num_channels)


def make(sign):
    return lambda group, statistics: sign * np.arange(group.num_channels)


def partial(sign):
    """A partial of a function that is another object each time, as in another process."""
    return functools.partial(FunctionType(by_order.__code__, globals()), sign=sign)


@dataclasses.dataclass(frozen=True)
class Ordered:
    sign: float

    def __call__(self, group, statistics):
        return self.sign * np.arange(group.num_channels)


class Opaque:
    def __call__(self, group, statistics):
        return np.arange(group.num_channels)


@pytest.mark.parametrize("family", [make, partial, Ordered], ids=["lambdas", "partials", "dataclasses"])
def test_a_criterion_is_known_again_and_told_from_another(family, search, tmp_path):
    file = tmp_path / "search.json"
    found = search(checkpoint=file, criterion=family(1.0))
    assert search(checkpoint=file, criterion=family(1.0)) == found
    with pytest.raises(InvalidArgumentError, match=r"belongs to another search: its criteria differ .*Delete it"):
        search(checkpoint=file, criterion=family(-1.0))


def test_functions_are_known_by_all_that_they_read(monkeypatch):
    def reader(group, statistics):
        return SCALE * by_order(group, statistics)

    known = identify(reader)
    assert identify(reader) == known
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert identify(reader) != known
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    monkeypatch.setattr(by_order, "__code__", (lambda group, statistics, sign=1.0: group.num_channels).__code__)
    assert identify(reader) != known
    assert identify(lambda g, s, k=1: k) != identify(lambda g, s, k=2: k)
    assert identify(lambda g, s: np.exp(1)) != identify(lambda g, s: np.log(1))
    assert identify(make(np.arange(3))) == identify(make(np.arange(3))) != identify(make(np.arange(4)))
    assert identify(keras_pcp.criteria.BY_NAME["chip"]) == "chip"


def test_criteria_that_cannot_be_known_again_are_refused_with_a_checkpoint(search, tmp_path):
    rng = np.random.default_rng(0)
    for criterion in (Opaque(), lambda group, statistics: rng.normal(size=group.num_channels)):
        with pytest.raises(InvalidArgumentError, match="must be one that can be recognized later"):
            search(checkpoint=tmp_path / "search.json", criterion=criterion)
    assert search(criterion=Opaque()).num_removed > 0


def changed(text: str) -> str:
    """Removes another channel than the search did."""
    data = json.loads(text)
    removed = data["state"]["selection"]["hidden"]["removed"]
    removed[0] = min(set(range(6)) - set(removed))
    return json.dumps(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda t: t[: len(t) // 2],
        lambda t: "",
        lambda t: "[]",
        lambda t: '{"model": "net"}',
        lambda t: "\x00\x80",
        lambda t: t.replace('"rounds"', '"round"'),
        lambda t: t.replace('"channels": 6', '"channels": 7'),
        changed,
    ],
    ids=["half", "empty", "list", "foreign", "binary", "key", "channels", "mask"],
)
def test_a_damaged_checkpoint_is_an_error_that_names_it(damage, saved, search):
    saved.write_bytes(damage(saved.read_text()).encode("latin-1"))
    with pytest.raises(InvalidArgumentError, match=r"search\.json .*Delete it to start again"):
        search(checkpoint=saved)


def test_an_interrupted_or_failed_write_leaves_the_last_checkpoint(search, saved, tmp_path, monkeypatch):
    before = saved.read_bytes()
    monkeypatch.setattr("keras_pcp.support.files.os.replace", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    other = tmp_path / "other.json"
    with pytest.raises(KeyboardInterrupt):
        search(checkpoint=other)
    assert saved.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["search.json"]
