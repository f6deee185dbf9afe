"""What notebooks show: rich representations, live curves, bars, and a cell that is interrupted."""

from __future__ import annotations

import io
import json
import sys
import types
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import optax
import pytest
from boring_modules import High, regression

import elegy as eg
from elegy.callbacks import LiveCurves
from elegy.html.tree import tree_html

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples" / "notebooks").glob("*.ipynb"))


class Lines(HTMLParser):
    """The points of the charts, by title and line."""

    def __init__(self, text):
        super().__init__()
        self.found, self._data, self._title = {}, None, False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self._data = dict(attrs).get("data-lines", self._data)
        self._title = tag == "figcaption"

    def handle_data(self, data):
        if self._title:
            self._title = False
            lines = {one["name"]: [point[:2] for point in one["points"]] for one in json.loads(self._data)}
            self.found[data.removesuffix(" (log scale)")] = lines


def fitted(**options):
    trainer = eg.Trainer(High(), eg.losses.MeanSquaredError(), optimizer=optax.adam(0.1))
    x, y = regression()
    trainer.fit(x, y, batch_size=8, epochs=3, validation_split=0.2, **{"verbose": 0, **options})
    return trainer


@pytest.fixture
def outputs(monkeypatch):
    """The outputs of a cell: a list with the contents of each, in the kernel of a notebook without ipywidgets."""
    shown = []

    class Handle:
        def __init__(self, place):
            self.place = place

        def update(self, html):
            shown[self.place].append(html)

    def display(html, display_id):
        shown.append([html])
        return Handle(len(shown) - 1)

    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    module = types.SimpleNamespace(HTML=str, display=display)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell, display=module))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    return shown


def test_live_curves_end_with_every_value(outputs):
    trainer = fitted(callbacks=[LiveCurves("loss")])
    (place,) = outputs
    history = trainer.history.history
    expected = {
        "train": [[3 * k, v] for k, v in enumerate(history["loss"], 1)],
        "val": [[3 * k, v] for k, v in enumerate(history["val_loss"], 1)],
    }
    assert Lines(place[-1]).found == {"loss": expected}


@pytest.mark.parametrize("name", ["val_loss", "los"])
def test_live_curves_name_what_was_not_logged(outputs, name):
    with pytest.warns(UserWarning, match=rf"nothing for '{name}'.* loss, mean_squared_error\.") as told:
        trainer = fitted(callbacks=[LiveCurves("loss", name)])
    assert told[0].filename == __file__
    (place,) = outputs
    assert Lines(place[-1]).found.keys() == {"loss"}
    trainer.fit(*regression(), verbose=0, callbacks=[LiveCurves("mean_squared_error")])  # no warning


def test_live_curves_outside_of_a_notebook_do_nothing(capsys):
    fitted(callbacks=[LiveCurves()])
    assert capsys.readouterr().out == ""
    with pytest.raises(TypeError, match="not 3"):
        LiveCurves(3)


def test_bars_share_one_place_and_leave_it_empty(outputs, capsys):
    fitted(verbose=1)
    (place,) = outputs
    assert place[-1] == ""
    assert any("epoch 1/3" in frame for frame in place)
    out, err = capsys.readouterr()
    assert [line.split("  ")[0] for line in out.splitlines()] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert err == ""


def test_a_summary_is_shown_once(outputs, capsys):
    trainer = fitted()
    trainer.summary(regression()[0][:1])
    (place,) = outputs
    assert "<td>(root)</td>" in place[0]
    assert capsys.readouterr().out == ""
    text = trainer.summary(regression()[0][:1], return_repr=True)
    assert text.startswith("┌")
    assert text._repr_html_() == place[0]


def test_trainers_and_histories_show_their_curves():
    trainer = fitted()
    drawn = Lines(trainer._repr_html_()).found
    assert drawn["loss"]["train"] == [[3 * k, v] for k, v in enumerate(trainer.history.history["loss"], 1)]
    assert drawn == Lines(trainer.history._repr_html_()).found
    assert "8 parameters" in trainer._repr_html_()
    before = eg.Trainer(High())
    assert "no parameters yet" in before._repr_html_()
    assert eg.History()._repr_html_() == "<pre>History(epochs=0, names=[])</pre>"


def test_trees_are_shown_by_treescope_or_as_text(monkeypatch):
    class Inner(eg.Pytree):
        text: str = eg.static_field(default="<b>")

    class Outer(eg.Pytree):
        inner: Inner = eg.field(default_factory=Inner)
        array: np.ndarray = eg.field(default_factory=lambda: np.arange(3))

    tree = Outer()
    assert "treescope" in tree._repr_html_()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert tree_html(tree).startswith("<pre>Outer(")
    assert "<b>" not in tree_html(tree)


def test_the_notebooks_are_executed():
    assert len(NOTEBOOKS) == 3
    for path in NOTEBOOKS:
        text = path.read_text()
        assert "/tmp" not in text
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
        assert not any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])


@pytest.mark.slow
def test_an_interrupted_cell_leaves_everything_usable():
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(startup_timeout=600, kernel_name="python3")
    out = io.StringIO()

    def run(code, interrupt_at=None):
        def output(message):
            nonlocal interrupt_at
            text = message["content"].get("text", "") + "".join(message["content"].get("traceback", ()))
            out.write(text)
            if interrupt_at is not None and interrupt_at in text:
                interrupt_at = None  # once: a slow run says it several times, and a second Ctrl-C raises
                manager.interrupt_kernel()

        return client.execute_interactive(code, output_hook=output, timeout=600)["content"]["status"]

    try:
        setup = """
import numpy as np, optax, elegy as eg, flax.linen as nn
x = np.ones((64, 2), np.float32)
trainer = eg.Trainer(nn.Dense(1), eg.losses.MeanSquaredError(), optimizer=optax.adam(0.1))
"""
        assert run(setup) == "ok", out.getvalue()
        endless = "trainer.fit(x, x[:, :1], epochs=10**9, callbacks=[eg.callbacks.LiveCurves()])"
        assert run(endless, interrupt_at="epoch 3/") == "ok", out.getvalue()
        after = "n = trainer.epoch; trainer.fit(x, x[:, :1], verbose=0); print(trainer.epoch - n, n > 2)"
        assert run(after) == "ok", out.getvalue()
        assert out.getvalue().endswith("1 True\n")
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
