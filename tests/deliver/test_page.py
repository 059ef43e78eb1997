"""The page of a report: complete, readable by a browser, and right."""

import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import keras
import numpy as np
import pytest

import keras_pcp
from keras_pcp.deliver.report import PruningReport
from keras_pcp.strategies.rounds import Attempt, Evaluation, Round

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def written_report():
    """A report with names that HTML would take for something else."""
    attempts = (Attempt("a<b>", (3, 1), 0.125, 0.25), Attempt("c&d", (0,), 0.5, 1.5, share=0.0))
    rounds = [
        Round(Evaluation(0.75, 0.5), attempts, ("a<b>",), macs=800.0, params=90, widths={"a<b>": 6, "c&d": 4}, step=7),
        Round(Evaluation(0.5, 0.75), (), ("c&d",), macs=400.0, params=50, widths={"a<b>": 6, "c&d": 2}, step=9),
    ]
    return PruningReport(
        model_name="<net>",
        limits={"macs": 500.0},
        before={"macs": 1000.0, "params": 100.0, "bytes": 400.0},
        after={"macs": 400.0, "params": 50.0, "bytes": 200.0},
        widths={"a<b>": (8, 6), "c&d": (4, 2)},
        layers={"a<b>": (700.0, 350.0), "relu": (0.0, 0.0), "c&d": (300.0, 50.0)},
        frozen=[("head", 10, "output of the <model>")],
        rounds=rounds,
        shrinks=[9],
        logs={"val_accuracy": 0.8125},
        notes=["a note & more"],
        monitor="accuracy (higher is better)",
    )


class Parsed(HTMLParser):
    """The text of a page and its tables; tags must be closed in order."""

    def __init__(self, page):
        super().__init__()
        self.open, self.text, self.cells, self.tags = [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            return
        self.text.append(data)
        if {"td", "th"} & set(self.open[-1:]):
            self.cells[-1].append(data)


def test_a_page_says_the_result_the_widths_the_rounds_and_what_is_frozen(tmp_path):
    report = written_report()
    page = report.to_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == page
    found = Parsed(page)
    text = " ".join(found.text)
    assert "<net>: pruned to 40.0% of the MACs" in text
    assert "All limits hold. 2 rounds, 1 cut. Latest epoch: val_accuracy 0.8125." in text
    assert "Attempts were compared by accuracy (higher is better)." in text
    assert "a note & more" in text
    for row in (
        ["MACs", "1,000", "400", "40.0%", "500"],
        ["parameters", "100", "50", "50.0%"],
        ["a<b>", "8", "6"],
        ["a<b>", "700", "350", "50.0%"],
        ["a<b>", "yes", "2", "0.1250", "0.2500", "100%"],
        ["c&d", "1", "0.5000", "1.5000", "earlier round"],
        ["head", "10", "output of the <model>"],
    ):
        assert row in found.cells
    assert "1. Step 7: 80.0% of the MACs, metric 0.7500 before it. a<b>" in text
    assert not any(cells[0] == "relu" for cells in found.cells)
    assert report._repr_html_() in page


def test_a_page_needs_nothing_else_and_bars_are_in_proportion():
    page = written_report().to_html()
    assert not {"script", "link", "img", "iframe"} & set(Parsed(page).tags)
    assert "http" not in page
    assert "url(" not in page
    bars = re.findall(r'<i style="width:([\d.]+)%"></i><i style="width:([\d.]+)%">', page)
    assert [tuple(map(float, pair)) for pair in bars] == [(100, 75), (50, 25), (100, 50), (42.9, 7.1)]


def test_the_chart_shows_steps_points_and_whole_numbers():
    page = written_report().to_html()
    width, height = 640 - 2 * 48, 220 - 2 * 28
    corners = re.search(r'<path d="M48.0 28.0([HV\d.]+)" fill="none" stroke="var\(--now\)"', page)[1]
    steps = [tuple(map(float, pair)) for pair in re.findall(r"H([\d.]+)V([\d.]+)", corners)]
    expected = [(48 + i / 2 * width, 192 - share * height) for i, share in enumerate((1.0, 0.8, 0.4))]
    assert np.allclose(steps, expected, atol=0.06)
    assert re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', page) == [("48.0", "28.0"), ("320.0", "192.0")]
    labels = re.findall(r"<text [^>]*>([^<]*)</text>", page)
    assert labels[:8] == ["0%", "50%", "100%", "0", "1", "2", "0.5", "0.75"]
    alone = replace(written_report(), rounds=written_report().rounds[:1]).to_html()
    assert re.findall(r"<text [^>]*>([^<]*)</text>", alone)[5:6] == ["0.75"]
    assert alone.count("<circle") == 1


def test_a_report_without_rounds_or_with_unknown_costs_has_a_page():
    report = replace(written_report(), rounds=[], shrinks=[], frozen=[], layers={}, widths={}, monitor="")
    text = " ".join(Parsed(report.to_html()).text)
    assert "<net>: nothing to prune, all limits hold" in text
    assert "Rounds" not in text
    assert "Open a round" not in text
    assert "<net>: not pruned yet" in " ".join(
        Parsed(replace(written_report(), limits={"macs": 9.0}, shrinks=[]).to_html()).text
    )
    nan = float("nan")
    unknown = replace(written_report(), limits={"params": 60.0}, before={"macs": nan, "params": 100.0, "bytes": 400.0})
    found = Parsed(unknown.to_html())
    assert ["MACs", "unknown", "400", "unknown"] in found.cells
    assert "svg" not in found.tags


def test_the_layers_of_a_fit_add_up_to_its_cost():
    keras.utils.set_random_seed(0)
    i = keras.Input((8, 8, 1))
    h = keras.layers.Conv2D(12, 3, activation="relu", name="first")(i)
    h = keras.layers.Conv2D(12, 3, activation="relu", name="second")(h)
    model = keras.Model(i, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(h)))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    x, y = np.random.default_rng(0).normal(size=(64, 8, 8, 1)).astype("float32"), np.arange(64) % 2
    pruning = keras_pcp.ProgressivePruning(max_macs=0.5, validation_data=(x, y))

    def odd(epoch, logs):
        logs.update(note="text", nothing=None, many=np.ones(3), one=np.float32(0.5))

    callbacks = [keras.callbacks.LambdaCallback(on_epoch_end=odd), pruning]
    history = model.fit(x, y, validation_data=(x, y), epochs=4, batch_size=8, verbose=0, callbacks=callbacks).history
    assert pruning.report.logs == {
        name: history[name][-1] for name in ("accuracy", "loss", "val_accuracy", "val_loss", "one")
    }
    assert f"val_accuracy {history['val_accuracy'][-1]:.4g}" in str(pruning.report)
    layers = pruning.report.layers
    assert sum(old for old, _ in layers.values()) == pruning.report.before["macs"]
    assert sum(now for _, now in layers.values()) == pruning.report.after["macs"] == keras_pcp.count_cost(model).macs
    assert pruning.report.to_json()["version"] == 1
    assert pruning.report.to_json()["layers"] == {name: list(pair) for name, pair in layers.items()}


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_a_browser_draws_it_in_light_and_dark_without_an_error(tmp_path):
    written_report().to_html(tmp_path / "report.html")
    pictures = []
    for number, scheme in enumerate(("1", "0")):
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
        command += [f"--blink-settings=preferredColorScheme={scheme}", "--window-size=800,900"]
        picture = tmp_path / f"{number}.png"
        command += [
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--screenshot={picture}",
            f"file://{tmp_path}/report.html",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        assert "CONSOLE" not in done.stderr
        pictures.append(keras.utils.img_to_array(keras.utils.load_img(picture)))
    light, dark = (picture.mean() for picture in pictures)
    assert light > 200  # mostly paper
    assert dark < 60
