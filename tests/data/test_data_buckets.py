"""Buckets by length: every sequence once, few shapes, the least padding, resumed exactly, trained as by a bare loop."""

import itertools
import json

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data_sequences import made

import elegy as eg
from elegy.data import BucketedBatches
from elegy.data.buckets import best_lengths
from elegy.data.iterables import IterableSource

LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=20)


@settings(max_examples=80)
@given(LENGTHS, st.integers(1, 5), st.integers(2, 4), st.booleans(), st.integers(0, 3), st.integers(1, 3))
def test_every_sequence_is_in_one_batch_of_few_shapes(lengths, size, shapes, shuffle, epoch, multiple):
    sequences = made(lengths)
    batches = BucketedBatches(
        sequences, np.arange(len(lengths)), batch_size=size, max_shapes=shapes, shuffle=shuffle, multiple_of=multiple
    )
    batches.set_epoch(epoch)
    given_ = list(batches)
    assert len(given_) == len(batches) == -(-len(lengths) // size)
    assert len({inputs["tokens"].shape for inputs, _ in given_}) <= shapes
    assert sorted(i for _, labels in given_ for i in labels) == list(range(len(lengths)))
    assert [rows.tolist() for rows in batches.rows(epoch)] == [labels.tolist() for _, labels in given_]
    for inputs, labels in given_:
        assert inputs["tokens"].shape[1] in batches.lengths
        assert inputs["tokens"].shape[1] % multiple == 0
        for row, mask, i in zip(inputs["tokens"], inputs["mask"], labels, strict=True):
            np.testing.assert_array_equal(row[mask], sequences[i])
            np.testing.assert_array_equal(mask, np.arange(len(row)) < lengths[i])
            assert not row[~mask].any()


@settings(max_examples=60)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.integers(1, 4))
def test_the_lengths_need_the_least_padding_of_all(lengths, count):
    def padded(chosen):
        return sum(min(c for c in chosen if c >= n) for n in lengths)

    found = best_lengths(np.array(lengths), count)
    assert len(found) <= count
    top = max(*lengths, 1) if len(lengths) > 1 else max(lengths[0], 1)
    choices = (c for k in range(count) for c in itertools.combinations(range(1, top), k))
    assert padded(found) == min(padded((*choice, top)) for choice in choices)


def test_many_lengths_are_divided_by_quantiles():
    sizes = np.random.default_rng(0).integers(1, 5000, 20_000)
    found = best_lengths(sizes, 4)
    assert len(found) == 4
    assert found[-1] == sizes.max()
    ideal = 5000 / 8  # uniform lengths: the mean padding of four equal buckets
    assert (np.array(found)[np.searchsorted(found, sizes)] - sizes).mean() < 1.02 * ideal


def test_epochs_differ_and_repeat_by_number():
    batches = BucketedBatches(made(range(1, 30)), batch_size=4, seed=7)
    first, second, again = [], [], []
    for epoch, out in ((0, first), (1, second), (0, again)):
        batches.set_epoch(epoch)
        out += [batch["tokens"].tolist() for batch in batches]
    assert first == again
    assert first != second


def test_labels_of_tokens_have_weights_and_dicts_their_names():
    words, tags = made([2, 1, 3]), made([2, 1, 3], dtype=np.int64)
    data = BucketedBatches(
        {"word": words, "case": words}, token_labels=tags, sample_weight=[1.0, 2.0, 3.0], batch_size=3, shuffle=False
    )
    ((inputs, labels, weights),) = data
    assert set(inputs) == {"word", "case", "mask"}
    np.testing.assert_array_equal(inputs["case"], labels)
    np.testing.assert_array_equal(labels, [[1, 2, 0], [3, 0, 0], [4, 5, 6]])
    np.testing.assert_array_equal(weights, [[1, 1, 0], [2, 0, 0], [3, 3, 3]])


def test_a_short_last_batch_can_be_left_out():
    batches = BucketedBatches(made([3, 1, 2, 2, 1]), batch_size=2, max_shapes=1, drop_remaining=True)
    assert [batch["tokens"].shape for batch in batches] == [(2, 3)] * len(batches) == [(2, 3)] * 2


@pytest.mark.parametrize("done", [0, 1, 3])
def test_a_pass_goes_on_at_its_place_without_reading_what_came_before(done, monkeypatch):
    def make():
        return BucketedBatches(made(range(1, 14)), batch_size=3)

    source = IterableSource(make())
    whole = [[b["tokens"].tolist() for b in source.batches()] for _ in range(3)]
    source = IterableSource(make())
    list(source.batches())
    batches = source.batches()
    seen = [next(batches)["tokens"].tolist() for _ in range(done)]
    state = json.loads(json.dumps(source.state(done)))
    resumed = IterableSource(make())
    next(resumed.batches())
    resumed.load_state(state)
    reads = []
    monkeypatch.setattr(
        BucketedBatches, "batch", lambda *a, _batch=BucketedBatches.batch: reads.append(a) or _batch(*a)
    )
    assert seen + [b["tokens"].tolist() for b in resumed.batches()] == whole[1]
    assert len(reads) == len(whole[1]) - done
    with pytest.raises(ValueError, match="had 13 sequences, now there are 2"):
        iter(BucketedBatches(made([1, 2]))).load_state_dict({"epoch": 0, "batches": 1, "sequences": 13})


class Mean(nn.Module):
    @nn.compact
    def __call__(self, tokens, mask):
        x = nn.Embed(60, 4)(tokens) * mask[..., None]
        return nn.Dense(2)(x.sum(1) / mask.sum(1, keepdims=True))


def test_training_and_prediction_equal_those_of_all_sequences_padded_to_the_longest():
    sequences = made([1, 2, 9, 3, 2, 8, 1, 4])
    labels = np.arange(8, dtype=np.int32) % 2
    tokens = np.stack([np.concatenate([one, np.zeros(9 - len(one), np.int32)]) for one in sequences])
    whole = {"tokens": tokens, "mask": tokens > 0}
    batches = BucketedBatches(sequences, labels, batch_size=2, max_shapes=3)
    variables = Mean().init(jax.random.key(0), **whole)
    trainer = eg.Trainer(Mean(), eg.losses.CrossEntropy(), optimizer=optax.sgd(0.1), variables=variables)
    trainer.fit(batches, epochs=2, verbose=0)
    assert trainer._session.executor.traces["train"] == len(batches.lengths) == 3
    params = variables["params"]

    @jax.jit
    def step(params, batch, labels):
        def loss(params):
            logits = Mean().apply({"params": params}, **batch)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        return jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params))

    for epoch in range(2):
        for rows in batches.rows(epoch):
            params = step(params, {key: part[rows] for key, part in whole.items()}, labels[rows])
    for ours, theirs in zip(jax.tree.leaves(trainer.state.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    ordered = BucketedBatches(sequences, batch_size=2, max_shapes=3, shuffle=False)
    back = np.argsort(np.concatenate(ordered.rows()))
    expected = Mean().apply({"params": params}, **whole)
    np.testing.assert_allclose(trainer.predict(ordered)[back], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("given_", "options", "message"),
    [
        ([[1], [2]], {"labels": [0]}, r"labels has the shape \(1,\), but there are 2 sequences"),
        ([[1], [2]], {"token_labels": [[0], [0, 1]]}, r"token_labels\[1\] has the length 2.*'tokens' has 1"),
        ([[1]], {"token_labels": [[0]], "labels": [1]}, "both given"),
        ({"a": [[1]], "b": [[1], [2]]}, {}, r"sequences\['b'\] has 2 sequences, but 'a' has 1"),
        ({"mask": [[1]]}, {}, "none may be 'mask'"),
        ([[1], [2], [3, 4]], {"batch_size": 2, "max_shapes": 1}, "max_shapes=1, but 3 sequences.*max_shapes=2"),
        ([[1, 2, 3]], {"lengths": [2]}, r"sequences\[0\] has 3 positions, more than the largest of lengths=2"),
        ([[1]], {"batch_size": 2, "drop_remaining": True}, "drop_remaining leaves no batch of 2 out of 1"),
        ([[1]], {"value": 0.5}, "value=0.5 cannot be stored"),
    ],
)
def test_what_does_not_fit_is_refused(given_, options, message):
    with pytest.raises(ValueError, match=message):
        BucketedBatches(given_, **options)
