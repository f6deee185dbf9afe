"""A small language model of function signatures, several packed into each row; it writes some after every epoch."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from shared import arguments

import elegy as eg

CONTEXT = 128
LONGEST = 80
ALPHABET = "\0" + "\n" + "".join(map(chr, range(32, 127)))  # padding, the beginning and end of a text, printable ASCII
BOUNDARY = ALPHABET.index("\n")


class Block(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = x + nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x), mask=mask)
        return x + nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(4 * x.shape[-1])(nn.LayerNorm()(x))))


class LanguageModel(nn.Module):
    width: int = 64
    layers: int = 2

    @nn.compact
    def __call__(self, tokens: jax.Array, segment_ids: jax.Array, positions: jax.Array) -> jax.Array:
        embed = nn.Embed(len(ALPHABET), self.width)
        x = embed(tokens) + nn.Embed(CONTEXT, self.width)(positions)
        # A token sees earlier tokens of its own text only, as if the text had a row of its own.
        same_text = nn.make_attention_mask(segment_ids, segment_ids, jnp.equal)
        mask = nn.combine_masks(same_text, nn.make_causal_mask(tokens))
        for _ in range(self.layers):
            x = Block(heads=4)(x, mask)
        return embed.attend(nn.LayerNorm()(x))


def encode(text: str) -> np.ndarray:
    return np.array([ALPHABET.index(c) for c in text], np.int32)


def signatures() -> list[np.ndarray]:
    """Returns the one-line signatures in the top-level modules of the standard library, without repetitions."""
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    source = "\n".join(file.read_text(encoding="utf-8", errors="ignore") for file in files)
    found = dict.fromkeys(re.findall(r"^ *def ([ -~]+):$", source, flags=re.MULTILINE))
    return [encode(f"\n{text}\n") for text in found if len(text) <= LONGEST]


class WriteTexts(eg.Callback):
    """Writes texts with the model after every epoch.

    Args:
        prompt: how they begin.
        count: how many.
        temperature: lower values prefer likely characters.
    """

    def __init__(self, prompt: str = "", count: int = 3, temperature: float = 0.7):
        self.prompt, self.count, self.temperature = prompt, count, temperature

    def on_epoch_end(self, event: eg.Event) -> None:
        texts = self.write(event.trainer, seed=event.epoch)
        print("\n".join(f"    def {text}:" for text in texts))
        event.log_text("signatures", "\n".join(texts))  # for loggers such as TensorBoard

    def write(self, trainer: eg.Trainer, seed: int) -> list[str]:
        """Returns new texts; `predict_on_batch` leaves the state of the training as it is."""
        rng = np.random.default_rng(seed)
        tokens = np.zeros((self.count, CONTEXT), np.int32)
        start = encode("\n" + self.prompt)
        tokens[:, : len(start)] = start
        # One segment a row. Attention is causal, so what comes later has no effect, and one shape is compiled.
        batch = {
            "tokens": tokens,
            "segment_ids": np.ones_like(tokens),
            "positions": np.tile(np.arange(CONTEXT, dtype=np.int32), (self.count, 1)),
        }
        for i in range(len(start), LONGEST):
            logits = trainer.predict_on_batch(batch)[:, i - 1] / self.temperature
            logits[:, 0] = -np.inf  # padding
            tokens[:, i] = (logits + rng.gumbel(size=logits.shape)).argmax(-1)  # a draw from the softmax
        rows = ("".join(ALPHABET[i] for i in row[1:LONGEST]) for row in tokens)
        return [row.split("\n")[0] for row in rows]


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    args = arguments(__doc__, epochs=8, argv=argv)
    texts = signatures()
    order = np.random.default_rng(0).permutation(len(texts))
    texts = [texts[i] for i in order]
    held_out = len(texts) // 10
    train, test = (eg.data.pack_sequences(part, CONTEXT) for part in (texts[held_out:], texts[:held_out]))
    print(f"{len(texts) - held_out:,} signatures in {len(train.tokens)} rows, {train.mask.mean():.1%} of them filled")

    steps = args.epochs * -(-len(train.tokens) // 16)
    trainer = eg.Trainer(
        LanguageModel(),
        loss=eg.losses.CrossEntropy(),
        metrics=[eg.metrics.Accuracy(), eg.metrics.Perplexity()],
        optimizer=optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 3e-3, steps // 10, steps)),
        ),
    )
    labels, weights = train.next_tokens()  # the last character of a text has no label: its weight is 0
    test_labels, test_weights = test.next_tokens()
    trainer.fit(
        train.inputs,
        labels,
        sample_weight=weights,
        batch_size=16,
        epochs=args.epochs,
        validation_data=(test.inputs, test_labels, test_weights),
        callbacks=[WriteTexts()],
    )
    scores = trainer.evaluate(test.inputs, test_labels, sample_weight=test_weights, verbose=0)
    print(f"held out: {scores['perplexity']:.2f} characters are as likely as the right one")
    return scores


if __name__ == "__main__":
    main()
