"""The methods of a trainer that write files and read them."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from elegy.checkpoint import AsyncSaver, store
from elegy.distributed import is_first, together
from elegy.module.averaging import Weights, with_weights
from elegy.runs.report import report as write_report
from elegy.trainer.one_fit import in_thread_of_fit
from elegy.trainer.saving import persistence
from elegy.trainer.saving import weights as weights_module
from elegy.trainer.saving.run_record import run_record
from elegy.trainer.session import Session
from elegy.types import Hyperparameters, PyTree
from elegy.walltime import measured


class FileMethods:
    """Saves, restores and exports; the base of `Trainer`."""

    _session: Session
    _module_name: str

    @property
    def run_dir(self) -> Path | None:
        """The folder of the running or last `fit`; None before the first one, and without `Trainer(run_dir=...)`."""
        folder = self._session.run_folder
        return None if folder is None else folder.path

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Writes a page about the run: one HTML file that loads nothing from elsewhere; see `elegy.runs.report`.

        With a run folder the page has everything that is in it. Without one it has the values of the last `fit` at
        epochs and evaluations, and the configuration.

        Args:
            path: the file to write; missing directories are made.

        Returns:
            The path.

        Example:
            >>> import tempfile, numpy as np, optax, flax.linen as nn
            >>> import elegy as eg
            >>> x = np.ones((8, 1), np.float32)
            >>> trainer = eg.Trainer(nn.Dense(1), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.5))
            >>> history = trainer.fit(x, x, epochs=2, verbose=0)
            >>> trainer.report(Path(tempfile.mkdtemp()) / "report.html").name
            'report.html'
        """
        record = run_record(self._session, self._module_name)
        return together(lambda: write_report(record, path) if is_first() else Path(path), f"writing {path}")

    def save(
        self, path: str | os.PathLike[str], *, saver: AsyncSaver | None = None, then: Callable[[], object] | None = None
    ) -> None:
        """Writes everything that a run needs to go on: the state, the counters, the place in the data.

        Of weights that the module was given and no step changes, such as the base of a `LoRA`, it writes a digest only:
        a trainer that restores the checkpoint must be made with the same weights.

        Args:
            path: the checkpoint's directory, or an address such as `gs://bucket/run/best`. What is there already is
                replaced at the end, or stays.
            saver: an `elegy.checkpoint.AsyncSaver` that writes beside the training loop.
            then: called in the background when the saver has written the checkpoint.

        Raises:
            CheckpointError: if it cannot be written, or there is no state yet; of a saver, if the save before
                this one failed.
            RuntimeError: while `fit` runs in another thread.
        """
        in_thread_of_fit(self._session, "save")
        with measured("saving"):
            contents = persistence.contents(self._session)
            if saver is None:
                store.save(path, *contents)
            else:
                saver.save(path, *contents, then=then)

    def restore(
        self,
        path: str | os.PathLike[str],
        *,
        strict: bool = True,
        hyperparameters: Hyperparameters | None = None,
    ) -> None:
        """Reads what `save` wrote. Before the first state exists it is held, and matched when it does.

        A checkpoint that was refused then is dropped by the next `restore` or `load_weights`.

        Args:
            path: the checkpoint, or a directory of them, whose newest intact one is read; addresses likewise.
            strict: whether every leaf must fit; otherwise what fits is loaded and the rest is listed.
            hyperparameters: whose values win where `optax.inject_hyperparams` keeps some in the optimizer's state:
                `"saved"`, the checkpoint's, or `"new"`, the trainer's own. None takes those that were saved, and warns
                if they differ.

        Raises:
            CheckpointError: if it is damaged, does not fit the state, or belongs to other base weights.
            ValueError: if `hyperparameters` is something else.
        """
        persistence.restore(self._session, path, strict=strict, hyperparameters=hyperparameters)

    def save_weights(self, path: str | os.PathLike[str], *, weights: Weights = "trained") -> None:
        """Writes the module's weights alone: no keys, optimizer, metrics or counters.

        Args:
            path: a file that ends in `.safetensors`, or the directory of a checkpoint.
            weights: which parameters to write; as for `Trainer.evaluate`.

        Raises:
            CheckpointError: if it cannot be written, or there are no weights yet.
            ImportError: for a safetensors file where safetensors is not installed.
        """
        weights_module.save(self._session, path, weights)

    def load_weights(
        self,
        source: str | os.PathLike[str] | PyTree,
        *,
        prefix: str | None = None,
        rename: Mapping[str, str] | Callable[[str], str] | None = None,
        strict: bool = True,
    ) -> None:
        """Takes weights from elsewhere; the step, the epoch, the key and the metrics stay.

        Of a checkpoint only the weights are read. A part of the state (`params`, `batch_stats`) of which nothing is
        given keeps its values. While no step was taken, the optimizer begins anew from the new weights; afterwards
        its state stays. An average of the parameters begins anew. Before the first state exists the weights are held,
        and matched when it does; those that were refused then are dropped by the next `load_weights` or `restore`.

        Args:
            source: a checkpoint, a directory of them, a safetensors file, a dict of arrays by path
                (`{"params/dense/kernel": ...}`), or variables in the form of the module's own library:
                `{"params": ..., "batch_stats": ...}` for Flax, `params` or `(params, state)` for Haiku.
            prefix: takes only what lies below this path of the source, such as `"params/encoder"`.
            rename: old path -> new path, for leaves or whole subtrees, or a function from the old path to the new.
            strict: whether every part that is touched must fit as a whole; otherwise what fits is loaded and the
                rest is listed in a warning.

        Raises:
            CheckpointError: if the source is damaged, or listing every path that does not fit. Nothing is ever
                cast or reshaped.
            ImportError: for a safetensors file where safetensors is not installed.

        Example:
            >>> import numpy as np, optax, flax.linen as nn
            >>> import elegy as eg
            >>> trainer = eg.Trainer(nn.Dense(1), loss=eg.losses.MeanSquaredError(), optimizer=optax.adam(0.1))
            >>> trainer.init_on_batch(np.ones((4, 2), np.float32))
            >>> trainer.load_weights({"params/bias": np.full(1, 3, np.float32)}, prefix="params/bias")
            >>> trainer.variables()["params"]["bias"]
            Array([3.], dtype=float32)
        """
        weights_module.load(self._session, source, prefix=prefix, renamed=rename, strict=strict)

    def variables(self) -> PyTree:
        """The weights in the form of the module's own library.

        Returns:
            The dict of collections that a linen module's `apply` takes, Haiku's `params` or `(params, state)`, and a
            dict of the state's fields for other modules. The updates of a `LoRA` are merged into those of its module.
            The arrays stay valid.
        """
        return weights_module.variables(self._session.state)

    def save_pickle(self, path: str | Path) -> None:
        """Writes the whole trainer to one file, your classes and functions included, for `elegy.load`.

        It is convenient between programs that have the same libraries. A checkpoint (`save`) lasts longer, resumes
        exactly and is safe to load from anyone.

        Args:
            path: the file.

        Raises:
            CheckpointError: if something cannot be pickled, or the file cannot be written.
            RuntimeError: while `fit` runs in another thread.
        """
        in_thread_of_fit(self._session, "save_pickle")
        from elegy.checkpoint import save_pickle

        whole = copy.copy(self)  # with a state that can be read here, also where it lay on several processes
        together(lambda: save_pickle(path, whole) if is_first() else None, f"writing {path}")

    def export(
        self,
        path: str | Path,
        inputs: PyTree,
        platforms: Sequence[str] | None = None,
        *,
        weights: Weights = "trained",
    ) -> None:
        """Writes the prediction step for use without this library, by `jax.export`, for batches of any size.

        The directory gets `pred_step.jax_export`, a serialized StableHLO function of the inputs with the weights
        inside, and `export.json`, which describes it. To run it:

            from jax import export
            predict = export.deserialize(bytearray(open("path/pred_step.jax_export", "rb").read())).call
            outputs = predict(inputs)

        Args:
            path: a directory.
            inputs: one batch of inputs, arrays or `jax.ShapeDtypeStruct`: their shapes and dtypes count.
            platforms: for example `("cpu", "cuda", "tpu")`; None for the platform of this process.
            weights: which parameters to write; as for `Trainer.evaluate`.

        Raises:
            CheckpointError: if the step depends on the number of rows, its outputs are containers that only your
                program knows, or the files cannot be written.
            ImportError: if flatbuffers is not installed (`pip install "elegy[export]"`).
        """
        from elegy.trainer.export.exported import export

        state = with_weights(self._session.state_for(inputs), weights)
        together(lambda: export(state, path, inputs, platforms) if is_first() else None, f"writing {path}")

    def export_saved_model(self, path: str | Path, inputs: PyTree, *, weights: Weights = "trained") -> None:
        """Writes the prediction step as a TensorFlow SavedModel, for batches of any size.

        Args:
            path: the SavedModel's directory. `tf.saved_model.load(path).f(inputs)` computes the outputs.
            inputs: as for `export`.
            weights: as for `export`.

        Raises:
            CheckpointError: if the step cannot be converted.
            ImportError: if TensorFlow is not installed.
        """
        from elegy.trainer.export.exported import export_saved_model

        state = with_weights(self._session.state_for(inputs), weights)
        together(lambda: export_saved_model(state, path, inputs) if is_first() else None, f"writing {path}")

    def export_onnx(self, path: str | Path, inputs: PyTree, *, weights: Weights = "trained") -> None:
        """Writes the prediction step as an ONNX model, for batches of any size.

        Its tensors are named by the paths of the inputs and outputs, `inputs` and `outputs` if they are single arrays.
        The model is run with onnxruntime on one and on three rows, and is only written if its outputs are those of the
        step, up to rounding.

        Args:
            path: the file, such as `model.onnx`.
            inputs: as for `export`. Give real examples: they are used for the comparison.
            weights: as for `export`.

        Raises:
            CheckpointError: if jax2onnx cannot convert the step, or its model computes something else.
            ImportError: if jax2onnx or onnxruntime is not installed (`pip install "elegy[onnx]"`).
        """
        from elegy.trainer.export.onnx_model import export_onnx

        state = with_weights(self._session.state_for(inputs), weights)
        together(lambda: export_onnx(state, path, inputs) if is_first() else None, f"writing {path}")
