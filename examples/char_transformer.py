"""A transformer that predicts the next character of the Python standard library's own source text."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import optax
from shared import arguments

import elegy as eg

CONTEXT = 64
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
STEPS_PER_EPOCH = 40


class Block(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        causal = nn.make_causal_mask(x[..., 0])
        x = x + nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x), mask=causal)
        return x + nn.Dense(width)(nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x))))


class Transformer(nn.Module):
    width: int = 64
    layers: int = 2

    @nn.compact
    def __call__(self, characters: jax.Array) -> jax.Array:
        embed = nn.Embed(len(ALPHABET), self.width)
        positions = self.param("positions", nn.initializers.normal(0.02), (CONTEXT, self.width))
        x = embed(characters) + positions[: characters.shape[1]]
        for _ in range(self.layers):
            x = Block(heads=4)(x)
        return embed.attend(nn.LayerNorm()(x))


def source_text() -> np.ndarray:
    """Returns the top-level modules of the standard library as one sequence of character indices."""
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    text = "\n".join(file.read_text(encoding="utf-8", errors="ignore") for file in files)
    known = np.full(128, -1)
    known[[ord(c) for c in ALPHABET]] = np.arange(len(ALPHABET))
    indices = known[np.frombuffer(text.encode("ascii", errors="ignore"), np.uint8)]
    return indices[indices >= 0].astype(np.int32)


def crops(text: np.ndarray, batch_size: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields random pieces of the text without end; the targets are the inputs one character later."""
    rng = np.random.default_rng(seed)
    while True:
        starts = rng.integers(0, len(text) - CONTEXT, batch_size)
        pieces = text[starts[:, None] + np.arange(CONTEXT + 1)]
        yield pieces[:, :-1], pieces[:, 1:]


def write(trainer: eg.Trainer, prompt: str, length: int, seed: int = 0) -> str:
    """Continues a prompt, one character at a time."""
    rng = np.random.default_rng(seed)
    written = [ALPHABET.index(c) for c in prompt]
    for _ in range(length):
        known = written[-CONTEXT:]
        # Attention is causal, so the values after the known part have no effect. A fixed shape needs one compilation.
        window = np.zeros((1, CONTEXT), np.int32)
        window[0, : len(known)] = known
        logits = trainer.predict_on_batch(window)[0, len(known) - 1]
        weights = np.exp((logits - logits.max()) / 0.7)
        written.append(int(rng.choice(len(ALPHABET), p=weights / weights.sum())))
    return "".join(ALPHABET[i] for i in written)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    args = arguments(__doc__, epochs=24, argv=argv)
    text = source_text()
    held_out = text[-len(text) // 20 :]
    pieces = held_out[: len(held_out) // (CONTEXT + 1) * (CONTEXT + 1)].reshape(-1, CONTEXT + 1)[:200]
    steps = args.epochs * STEPS_PER_EPOCH
    print(f"{len(text):,} characters")

    trainer = eg.Trainer(
        Transformer(),
        loss=eg.losses.CrossEntropy(),
        metrics=[eg.metrics.Accuracy(), eg.metrics.Perplexity()],
        optimizer=optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 3e-3, steps // 10, steps)),
        ),
    )
    trainer.fit(
        crops(text[: -len(held_out)], batch_size=32, seed=0),
        epochs=args.epochs,
        steps_per_epoch=STEPS_PER_EPOCH,
        validation_data=(pieces[:, :-1], pieces[:, 1:]),
    )
    scores = trainer.evaluate(pieces[:, :-1], pieces[:, 1:], verbose=0)
    print(f"held out: {scores['perplexity']:.2f} characters are as likely as the right one")
    print(write(trainer, prompt="\n    def read(self, ", length=300))
    return scores


if __name__ == "__main__":
    main()
