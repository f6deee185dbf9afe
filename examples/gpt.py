"""GPT-2 over the bytes of the Python standard library's sources: tiny on a CPU, 124M and more on accelerators."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from shared import arguments

import elegy as eg

BYTES = 256


class Size(NamedTuple):
    layers: int
    width: int
    heads: int
    context: int
    batch_size: int
    steps_per_epoch: int | None  # None for all of the data
    learning_rate: float


SIZES = {
    "tiny": Size(2, 64, 4, 64, 32, 60, 3e-3),
    "124M": Size(12, 768, 12, 1024, 16, None, 6e-4),
    "355M": Size(24, 1024, 16, 1024, 16, None, 3e-4),
    "774M": Size(36, 1280, 20, 1024, 16, None, 2.5e-4),
    "1.5B": Size(48, 1600, 25, 1024, 16, None, 2e-4),
}
"""Those of GPT-2. With 256 tokens instead of 50,257, and biases as in the paper, 124M has 86 million parameters."""


class Block(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        rows, length, width = x.shape
        qkv = nn.Dense(3 * width)(nn.LayerNorm()(x)).reshape(rows, length, 3, self.heads, -1)
        # cuDNN's kernel never writes the matrix of all pairs of positions to memory; it has 16 bits only.
        fused = jax.default_backend() == "gpu" and x.dtype in (jnp.bfloat16, jnp.float16)
        mixed = jax.nn.dot_product_attention(
            qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], is_causal=True, implementation="cudnn" if fused else "xla"
        )
        x = x + nn.Dense(width)(mixed.reshape(rows, length, width))
        return x + nn.Dense(width)(nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x))))


class GPT(nn.Module):
    size: Size
    remat: bool = False

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        block = nn.remat(Block) if self.remat else Block
        embed = nn.Embed(BYTES, self.size.width, embedding_init=nn.initializers.normal(0.02))
        x = embed(tokens)
        positions = self.param("positions", nn.initializers.normal(0.02), (self.size.context, self.size.width))
        x = x + positions[: tokens.shape[1]].astype(x.dtype)
        for _ in range(self.size.layers):
            x = block(self.size.heads)(x)
        return embed.attend(nn.LayerNorm()(x))


def pieces(context: int) -> np.ndarray:
    """Returns the standard library as `int32[pieces, context + 1]`, bytes of the text; the pieces do not overlap."""
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    text = np.frombuffer(b"\n".join(file.read_bytes() for file in files), np.uint8).astype(np.int32)
    return text[: len(text) // (context + 1) * (context + 1)].reshape(-1, context + 1)


def write(trainer: eg.Trainer, context: int, prompt: str, length: int, temperature: float, seed: int = 0) -> str:
    """Continues a prompt, byte by byte."""
    rng = np.random.default_rng(seed)
    written = list(prompt.encode())
    for _ in range(length):
        known = written[-context:]
        # Attention is causal, so the values after the known part have no effect. A fixed shape needs one compilation.
        window = np.zeros((1, context), np.int32)
        window[0, : len(known)] = known
        logits = trainer.predict_on_batch(window)[0, len(known) - 1].astype(np.float64)
        weights = np.exp((logits - logits.max()) / temperature)
        written.append(int(rng.choice(BYTES, p=weights / weights.sum())))
    return bytes(written).decode(errors="replace")


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    on_cpu = jax.default_backend() == "cpu"
    args = arguments(
        __doc__,
        epochs=8 if on_cpu else 20,
        argv=argv,
        size={"default": "tiny" if on_cpu else "124M", "choices": list(SIZES), "help": "the size of the network"},
        strategy={"default": "jit", "help": "such as data_parallel or fsdp, for several devices"},
        precision={"default": "float32" if on_cpu else "mixed_bfloat16", "help": "of the computation"},
        remat={"action": "store_true", "help": "compute activations twice instead of keeping them"},
        prompt={"default": "\n    def read(self, ", "help": "what the sample begins with"},
        temperature={"type": float, "default": 0.7, "help": "of the sample; lower is less random"},
    )
    size = SIZES[args.size]
    data = pieces(size.context)
    data = data[np.random.default_rng(0).permutation(len(data))]
    held_out, train = data[:128], data[128:]
    steps = args.epochs * (size.steps_per_epoch or -(-len(train) // size.batch_size))
    trainer = eg.Trainer(
        GPT(size, args.remat),
        loss=eg.losses.CrossEntropy(),
        metrics=eg.metrics.Perplexity(),
        optimizer=optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(
                optax.warmup_cosine_decay_schedule(0.0, size.learning_rate, steps // 10, steps),
                b2=0.95,
                weight_decay=0.1,
            ),
        ),
        strategy=args.strategy,
        precision=args.precision,
    )
    trainer.fit(
        train[:, :-1],
        train[:, 1:],
        batch_size=size.batch_size,
        epochs=args.epochs,
        steps_per_epoch=size.steps_per_epoch,
        validation_data=(held_out[:, :-1], held_out[:, 1:]),
    )
    scores = trainer.evaluate(held_out[:, :-1], held_out[:, 1:], batch_size=size.batch_size, verbose=0)
    print(f"held out: {scores['loss'] / np.log(2):.2f} bits per byte")
    print(write(trainer, size.context, args.prompt, 300, args.temperature))
    return scores


if __name__ == "__main__":
    main()
