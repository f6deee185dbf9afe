"""A server on this machine answers what `trainer.predict` computes, in JSON and NumPy, for many clients at once."""

from __future__ import annotations

import contextlib
import io
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import flax.linen as nn
import httpx
import jax
import numpy as np
import pytest
import uvicorn

import elegy as eg
from elegy.errors import CheckpointError
from elegy.serving.model import Served, of_export
from elegy.serving.server import app, serve

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)


@contextlib.contextmanager
def serving(served, **options):
    """Runs the server in a thread; yields a client."""
    server = uvicorn.Server(uvicorn.Config(app(served, **options), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client:
        yield client
    server.should_exit = True
    thread.join()


def struct(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture(scope="module")
def trainer():
    trainer = eg.Trainer(nn.Dense(2), eg.losses.MeanSquaredError())
    trainer.init_on_batch(X)
    return trainer


@pytest.fixture(scope="module")
def client(trainer):
    with serving(Served(trainer.predict_on_batch, struct(1, 3), {"step": 0}), max_batch_size=8) as client:
        yield client


def test_json_and_numpy_are_answered_with_the_outputs(client, trainer):
    for rows in (1, 3, 8, 40):  # below, at and above the largest batch
        expected = trainer.predict(X[:rows])
        answer = client.post("/predict", json={"inputs": X[:rows].tolist()})
        np.testing.assert_allclose(answer.json()["outputs"], expected, rtol=1e-6)
        answer = client.post("/predict", content=npy(X[:rows]))
        assert answer.headers["content-type"] == "application/x-npy"
        outputs = np.load(io.BytesIO(answer.content))
        assert outputs.dtype == np.float32
        np.testing.assert_allclose(outputs, expected, rtol=1e-6)


def test_concurrent_requests_share_batches_and_get_their_own_rows(trainer):
    with serving(Served(trainer.predict_on_batch, struct(1, 3), {}), max_batch_size=20, max_wait_ms=600_000) as client:
        before = client.get("/health").json()
        with ThreadPoolExecutor(20) as pool:
            answers = pool.map(lambda i: client.post("/predict", json={"inputs": X[i : i + 1].tolist()}), range(20))
            outputs = np.concatenate([answer.json()["outputs"] for answer in answers])
        after = client.get("/health").json()
    np.testing.assert_allclose(outputs, trainer.predict(X[:20]), rtol=1e-6)
    assert after["requests"] - before["requests"] == 20
    assert after["batches"] - before["batches"] == 1  # it begins when it is full
    assert after["joins_requests"]


def test_requests_stay_alone_if_rows_depend_on_one_another():
    def centred(x):
        return x - x.mean(0, keepdims=True)

    with serving(Served(centred, struct(1, 3), {}), max_wait_ms=200) as client:
        assert client.get("/health").json()["joins_requests"] is False
        with ThreadPoolExecutor(5) as pool:
            parts = [X[i : i + 3] for i in range(5)]  # three rows: padding to four would change the mean
            answers = list(pool.map(lambda part: client.post("/predict", json={"inputs": part.tolist()}), parts))
    for part, answer in zip(parts, answers, strict=True):
        np.testing.assert_allclose(answer.json()["outputs"], centred(part), rtol=1e-6)


def test_trees_of_inputs_and_outputs():
    def predict(inputs):
        tokens, more = inputs["tokens"], inputs["more"]
        return {"sum": tokens.sum(1), "parts": [more[0], more[1]]}

    spec = {"tokens": struct(1, 4, dtype="int32"), "more": (struct(1), struct(1, 2, dtype="bfloat16"))}
    given = {"tokens": [[1, 2, 3, 4], [0, 0, 0, 9]], "more": [[1, 0], [[0.5, 1], [2, 3]]]}
    with serving(Served(predict, spec, {})) as client:
        expected = {"sum": [10, 9], "parts": [[1, 0], [[0.5, 1], [2, 3]]]}
        assert client.post("/predict", json={"inputs": given}).json() == {"outputs": expected}
        file, ones = io.BytesIO(), np.ones((2, 2), np.float32)
        np.savez(file, **{"tokens": given["tokens"], "more/0": ones[0], "more/1": ones})
        answer = client.post("/predict", content=file.getvalue())
        assert answer.headers["content-type"] == "application/x-npz"
        found = np.load(io.BytesIO(answer.content))
        assert sorted(found) == ["parts/0", "parts/1", "sum"]
        np.testing.assert_array_equal(found["sum"], [10, 9])
        np.testing.assert_array_equal(found["parts/1"], ones)  # bfloat16 as float32


def test_json_has_null_for_values_that_are_not_finite():
    with serving(Served(lambda x: np.asarray(jax.numpy.log(x)), struct(1, 2), {})) as client:
        text = client.post("/predict", json={"inputs": [[0.0, 1.0], [-1.0, 1.0]]}).text
    assert json.loads(text) == {"outputs": [[None, 0.0], [None, 0.0]]}


def test_complex_outputs_are_answered_as_a_file_and_not_as_json():
    with serving(Served(np.fft.fft, struct(1, 4), {})) as client:
        refused = client.post("/predict", json={"inputs": [[0.0, 1.0, 0.0, 0.0]]})
        assert refused.status_code == 400
        assert re.search(
            r"the outputs are complex\d+, which JSON cannot hold: send .* a \.npy", refused.json()["error"]
        )
        rows = np.eye(4, dtype=np.float32)
        answer = np.load(io.BytesIO(client.post("/predict", content=npy(rows)).content))
    np.testing.assert_allclose(answer, np.exp(-2j * np.pi * np.outer(np.arange(4), np.arange(4)) / 4), atol=1e-6)


BAD = [
    (b"{", "neither JSON nor"),
    (b"[1]", "a JSON object with one key"),
    (b'{"input": [[1, 2, 3]]}', "a JSON object with one key"),
    (b'{"inputs": [[1, 2]]}', r"float32\[rows,3\], but its shape is \[1, 2\]"),
    (b'{"inputs": [1, 2, 3]}', r"its shape is \[3\]"),
    (b'{"inputs": [[1, 2, 3], [1]]}', "differ in length"),
    (b'{"inputs": [["a", "b", "c"]]}', "its values are text"),
    (b'{"inputs": [[null, 1, 2]]}', "its values are not all numbers: one is null"),
    (b'{"inputs": []}', r"its shape is \[0\]"),
    (npy(X[:0]), "at least 1"),
    (npy(X[:, :2]), r"its shape is \[40, 2\]"),
    (npy(X.astype(complex)), "its values are complex128"),
    (npy(X)[:200], "is not a .npy or .npz file"),
    (b"PK1234", "is not a .npy or .npz file"),
]


@pytest.mark.parametrize(("body", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_bodies_are_refused(client, body, message):
    answer = client.post("/predict", content=body)
    assert answer.status_code == 400
    assert re.search(message, answer.json()["error"])


def test_pickles_are_not_read(client):
    answer = client.post("/predict", content=npy(np.array([[print, 1, 2]], object)))
    assert answer.status_code == 400
    assert "allow_pickle" in answer.json()["error"]


def test_integers_out_of_range_large_bodies_and_errors_of_the_model():
    def predict(tokens):
        if tokens.max() > 99:
            raise RuntimeError("no such token")
        return tokens

    with serving(Served(predict, struct(1, 2, dtype="uint8"), {}), max_bytes=1000) as client:
        for values, code, message in (
            ([[1, 256]], 400, "it has values from 1 to 256"),
            ([[1, 1.5]], 400, "its values are float64"),
            ([[1, 100]], 500, "the model raised RuntimeError: no such token"),
            ([[1, 2]] * 1000, 413, "more than 1000 bytes"),
        ):
            answer = client.post("/predict", json={"inputs": values})
            assert answer.status_code == code
            assert message in answer.json()["error"]
        assert client.post("/predict", json={"inputs": [[1, 2]]}).json() == {"outputs": [[1, 2]]}


def test_the_pages(client):
    health = client.get("/health").json()
    assert health["status"] == "ok"
    assert health["step"] == 0
    assert health["inputs"] == {"inputs": "float32[rows,3]"}
    page = client.get("/").text
    assert "float32[rows,3]" in page
    assert "no authentication" in page
    for answer, code in ((client.get("/predict"), 405), (client.post("/predictions"), 404)):
        assert answer.status_code == code
        assert "the server answers GET /, GET /health and POST /predict" in answer.json()["error"]
    assert client.get("/predict").headers["allow"] == "POST"


def test_an_export_is_served_without_the_trainer(trainer, tmp_path):
    trainer.export(tmp_path, X[:1])
    served = of_export(str(tmp_path))
    with serving(served) as client:
        answer = client.post("/predict", json={"inputs": X[:5].tolist()})
    np.testing.assert_allclose(answer.json()["outputs"], trainer.predict(X[:5]), rtol=1e-6)
    (tmp_path / "pred_step.jax_export").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="cannot be read"):
        of_export(str(tmp_path))


def test_an_export_for_other_platforms_is_refused(trainer, tmp_path):
    trainer.export(tmp_path, X[:1], platforms=("tpu",))
    with pytest.raises(CheckpointError, match=r"was exported for tpu, but this process runs on c"):
        of_export(str(tmp_path))


@pytest.mark.parametrize("port", [-1, 65536, 70000])
def test_a_port_that_does_not_exist_is_refused(port, monkeypatch):
    monkeypatch.setattr(uvicorn, "run", lambda *_, **__: pytest.fail("it was served"))
    with pytest.raises(ValueError, match=f"port={port}: it must be a number from 0 to 65535"):
        serve(Served(lambda x: x, struct(1, 3), {}), port=port)
