"""A GPT against a hand-written loop: the time of a step, TFLOP/s, MFU and the peak memory of the device.

On an accelerator this is the 124M model in bfloat16 with its vocabulary of 50,304 tokens, elsewhere a small one in
float32. Three processes share a compilation cache: one for the memory of each side, one for the pairs.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import tempfile
from typing import Any

from benchmarks.children import child
from benchmarks.options import Options
from benchmarks.pairs import Row

GOAL = 1.005  # 0.995 of the MFU of the hand-written loop
MEMORY_GOAL = 1.02
OTHER = "hand-written loop"


@dataclasses.dataclass(frozen=True)
class Size:
    """A GPT and the batches of its training.

    Args:
        name: the name in the table.
        layers: the number of blocks.
        width: the width of the residual stream.
        heads: the heads of each attention.
        context: the tokens of a row.
        vocabulary: the number of different tokens.
        batch_size: the rows of a batch.
        steps: the steps of one measurement.
        precision: of the computation, as for `Trainer`.
    """

    name: str
    layers: int
    width: int
    heads: int
    context: int
    vocabulary: int
    batch_size: int
    steps: int
    precision: str

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        block = 12 * self.width**2 + 13 * self.width
        return (self.vocabulary + self.context + 2) * self.width + self.layers * block

    @property
    def flops(self) -> float:
        """The operations of a training step, a multiply-add as two.

        Six for each token and parameter of a matrix product, one product forward and two backward, and twelve for each
        pair of positions, as in the PaLM paper (Chowdhery et al., 2022, appendix B): attention counts as if it were not
        causal, and recomputed activations do not count.
        """
        products = 12 * self.layers * self.width**2 + self.vocabulary * self.width
        per_token = 6 * products + 12 * self.layers * self.width * self.context
        return float(self.batch_size * self.context * per_token)


LARGE = Size("gpt 124M", 12, 768, 12, 1024, 50_304, 16, 30, "mixed_bfloat16")
SMALL = Size("gpt small", 2, 128, 4, 128, 512, 16, 10, "float32")


def run(options: Options) -> list[Row]:
    """Time, operations per second, MFU where the device's peak is known, and memory."""
    with tempfile.TemporaryDirectory() as cache:
        memory = {side: child("gpt", side, cache) for side in ("ours", "theirs")}
        timed = child("gpt", "pairs", cache, str(3 if options.quick else options.repeats))
    size = Size(**timed["size"])
    note = f"{size.parameters / 1e6:.1f}M parameters on {timed['device']}, {size.precision}"
    ours, theirs = timed["ours"], timed["theirs"]
    rows = [Row(f"{size.name}, step", OTHER, "us/step", ours, theirs, GOAL, note)]
    rates = [[size.flops / one / 1e6 for one in side] for side in (ours, theirs)]
    rows.append(Row(f"{size.name}, operations", OTHER, "TFLOP/s", *rates))
    if timed["peak"] is not None:
        shares = [[100e12 * one / timed["peak"] for one in side] for side in rates]
        rows.append(Row(f"{size.name}, MFU", OTHER, "%", *shares, note=f"of {timed['peak'] / 1e12:,.0f} TFLOP/s"))
    megabytes = [[memory[side]["bytes"] / 1e6] for side in ("ours", "theirs")]
    return [*rows, Row(f"{size.name}, peak memory", OTHER, "MB", *megabytes, MEMORY_GOAL, memory["ours"]["source"])]


def network(size: Size) -> Any:
    """Makes the linen module: learned positions, norms before each part, tied embeddings."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            rows, length, width = x.shape
            qkv = nn.Dense(3 * width)(nn.LayerNorm()(x)).reshape(rows, length, 3, size.heads, -1)
            fused = jax.default_backend() == "gpu" and x.dtype == jnp.bfloat16
            mixed = jax.nn.dot_product_attention(
                qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], is_causal=True, implementation="cudnn" if fused else "xla"
            )
            x = x + nn.Dense(width)(mixed.reshape(rows, length, width))
            return x + nn.Dense(width)(nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x))))

    class GPT(nn.Module):
        @nn.compact
        def __call__(self, tokens: jax.Array) -> jax.Array:
            small = nn.initializers.normal(0.02)
            embed = nn.Embed(size.vocabulary, size.width, embedding_init=small)
            x = embed(tokens)
            positions = self.param("positions", small, (size.context, size.width))
            x = x + positions[: tokens.shape[1]].astype(x.dtype)
            for _ in range(size.layers):
                x = Block()(x)
            return embed.attend(nn.LayerNorm()(x))

    return GPT()


class Ours:
    """`fit` with an array of token rows."""

    def __init__(self, size: Size, params: Any, optimizer: Any):
        import elegy as eg

        self.size = size
        self.trainer = eg.Trainer(
            network(size),
            loss=eg.losses.CrossEntropy(),
            optimizer=optimizer,
            variables={"params": params},
            precision=size.precision,
        )

    def __call__(self, x: Any, y: Any) -> list[float]:
        """Trains for one epoch in the order of `epoch_permutation`; returns its loss."""
        return self.trainer.fit(x, y, batch_size=self.size.batch_size, verbose=0).history["loss"]


class Theirs:
    """A jitted step with donated state, batches gathered by NumPy, the loss read once an epoch."""

    def __init__(self, size: Size, params: Any, optimizer: Any):
        import jax
        import jax.numpy as jnp
        import optax

        self.size, self.epoch = size, 0
        module = network(size)
        width = jnp.bfloat16 if size.precision == "mixed_bfloat16" else jnp.float32
        params = jax.device_put(params)
        self.state = (params, optimizer.init(params))

        @functools.partial(jax.jit, donate_argnums=0)
        def step(state: Any, total: jax.Array, x: jax.Array, y: jax.Array) -> Any:
            params, opt_state = state

            def objective(params: Any) -> jax.Array:
                narrow = jax.tree.map(lambda leaf: leaf.astype(width), params)
                logits = module.apply({"params": narrow}, x).astype(jnp.float32)
                return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

            loss, grads = jax.value_and_grad(objective)(params)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), total + loss

        self.step = step

    def __call__(self, x: Any, y: Any) -> list[float]:
        """Trains for one epoch in the same order; returns its loss."""
        import jax.numpy as jnp

        from elegy.data import epoch_permutation

        order, size = epoch_permutation(0, self.epoch, len(x)), self.size.batch_size
        total = jnp.zeros(())
        for start in range(0, len(x), size):
            rows = order[start : start + size]
            self.state, total = self.step(self.state, total, x[rows], y[rows])
        self.epoch += 1
        return [float(total) * size / len(x)]


def side_of(kind: type, size: Size) -> tuple[Any, Any, Any]:
    """Returns one side, and its inputs and labels."""
    import jax
    import numpy as np
    import optax

    rows = np.random.default_rng(0).integers(
        0, size.vocabulary, (size.steps * size.batch_size, size.context + 1), dtype=np.int32
    )
    # On the host, so that neither side has another copy on the device.
    params = jax.device_get(jax.jit(network(size).init)(jax.random.key(0), rows[:1, :-1])["params"])
    return kind(size, params, optax.adamw(3e-4)), rows[:, :-1], rows[:, 1:]


def memory(kind: type, size: Size) -> dict[str, Any]:
    """Trains, and returns the peak of the device's memory; where the backend has no statistics, the compiler's sum."""
    import jax

    side, x, y = side_of(kind, size)
    side(x, y)
    found = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in found:
        return {"bytes": found["peak_bytes_in_use"], "source": "the most in use while a process trains"}
    if kind is Ours:
        peak = side.trainer.cost(x, y, batch_size=size.batch_size).peak_bytes
    else:
        batch = x[: size.batch_size], y[: size.batch_size]
        used: Any = side.step.lower(side.state, jax.numpy.zeros(()), *batch).compile().memory_analysis()
        peak = used.argument_size_in_bytes + used.output_size_in_bytes - used.alias_size_in_bytes
        peak += used.temp_size_in_bytes + used.generated_code_size_in_bytes
    return {"bytes": peak, "source": "by the compiler's analysis of the step"}


def pairs(size: Size, repeats: int) -> dict[str, Any]:
    """Times both sides in pairs, after a check that they compute the same losses."""
    import jax
    import numpy as np

    from benchmarks.pairs import measure
    from elegy.callbacks.mfu import PEAKS, peak_of

    (ours, x, y), (theirs, _, _) = (side_of(kind, size) for kind in (Ours, Theirs))
    # Adam divides a gradient by its size, so the rounding of one near zero moves its parameter by a whole step.
    np.testing.assert_allclose(ours(x, y), theirs(x, y), rtol=1e-3 if size.precision == "float32" else 1e-2)
    row = measure(size.name, lambda: ours(x, y), lambda: theirs(x, y), pairs=repeats, per=size.steps)
    device = jax.devices()[0].device_kind
    known = any(device.startswith(name) for name in PEAKS)
    return {
        "size": dataclasses.asdict(size),
        "device": device,
        "ours": row.ours,
        "theirs": row.theirs,
        "peak": peak_of(device) if known else None,
    }


def main(what: str, cache: str, repeats: str = "3") -> None:
    """One process of the benchmark; prints its result as JSON."""
    import jax

    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    size = SMALL if jax.default_backend() == "cpu" else LARGE
    kinds = {"ours": Ours, "theirs": Theirs}
    print(json.dumps(memory(kinds[what], size) if what in kinds else pairs(size, int(repeats))))


if __name__ == "__main__":
    main(*sys.argv[1:])
