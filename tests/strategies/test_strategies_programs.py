"""What the compilers make of a step: collectives, and memory for each device."""

import re
from collections import Counter
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn
from strategy_table import CLASSES

import elegy as eg
from elegy.loading.chunks import structure
from elegy.strategies import FSDP, DataParallel, Sharded

WIDTH = 256
PARAMS = 2 * WIDTH * WIDTH + WIDTH * CLASSES
BATCH = 64


class Wide(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(2):
            x = nn.tanh(nn.Dense(WIDTH, use_bias=False)(x))
        return nn.Dense(CLASSES, use_bias=False)(x)


class WideNorm(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, training: bool) -> jax.Array:
        x = nn.BatchNorm(use_running_average=not training)(nn.Dense(WIDTH)(x))
        return nn.Dense(CLASSES)(x)


def batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(BATCH, WIDTH)).astype(np.float32), rng.integers(0, CLASSES, BATCH)


def compiled_step(strategy: Any, module: Any = None, *, steps: int = 1) -> Any:
    """The executable of a training step, or of several in a row."""
    trainer = eg.Trainer(
        module or Wide(),
        loss=eg.losses.CrossEntropy(),
        metrics=[eg.metrics.Accuracy(), eg.metrics.Accuracy(name="again")],
        optimizer=optax.adam(1e-3),
        strategy=strategy,
    )
    trainer.train_on_batch(*batch())
    program = trainer._session.executor.program("train", trainer._session.buffer, structure(batch()), None)
    leaves = trainer._session.buffer.peek()
    changed = [leaves[i] for i in program.changed]
    args = changed[: program.donated], changed[program.donated :], [leaves[i] for i in program.constant]
    control = np.zeros(3, np.int32)
    if steps == 1:
        return program.single().lower(*args, trainer.strategy.place(batch(), "batch"), None, control).compile()
    stack = trainer.strategy.place(jax.tree.map(lambda leaf: np.stack([leaf] * steps), batch()), "chunk")
    return program.fused(steps, resident=False).lower(*args, stack, None, None, control).compile()


def collectives(compiled: Any) -> Counter:
    """How many collectives of each kind an executable has; one may carry many arrays."""
    names = re.findall(
        r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(", compiled.as_text()
    )
    return Counter(names)


def arguments(compiled: Any) -> int:
    """Bytes of arguments on each device."""
    return compiled.memory_analysis().argument_size_in_bytes


def test_a_fully_sharded_step_gathers_parameters_scatters_gradients_and_keeps_parts() -> None:
    whole, parts = compiled_step(Sharded({"data": 8})), compiled_step(FSDP({"data": 8}))
    found = collectives(parts)
    assert found["all-gather"] >= 3  # one for each matrix, at least: parameters are gathered
    assert found["all-reduce"] + found["reduce-scatter"] >= 1
    assert collectives(whole)["all-gather"] == 0
    # Parameters and two moments, in float32: whole on each device, against an eighth of them.
    data = BATCH // 8 * (WIDTH + 1) * 4
    slack = 4096  # counters, keys, accumulators
    assert abs(arguments(whole) - 3 * 4 * PARAMS - data) < slack
    assert abs(arguments(parts) - 3 * 4 * PARAMS // 8 - data) < slack
    # What is computed on the way is no more than the gathered parameters and their gradients: no whole moments.
    memory = parts.memory_analysis()
    assert memory.output_size_in_bytes < 3 * 4 * PARAMS // 8 + slack
    assert memory.temp_size_in_bytes < 2 * 4 * PARAMS + slack


def test_several_fully_sharded_steps_in_one_execution_keep_parts_too() -> None:
    several = compiled_step(FSDP({"data": 8}), steps=4)
    assert collectives(several)["all-gather"] >= 3
    assert several.memory_analysis().output_size_in_bytes < 3 * 4 * PARAMS // 8 + 4096
    # XLA's older emitters make a small loop of a scatter: the loop over the steps carries most.
    loop = max(re.findall(r"= (\(.*\)) while\(", several.as_text()), key=len)
    assert loop.count(f"f32[{WIDTH // 8},{WIDTH}]") == 3 * 2  # two matrices and their moments, in parts
    assert f"f32[{WIDTH},{WIDTH}]" not in loop


def test_a_fully_sharded_state_is_made_in_parts() -> None:
    trainer = eg.Trainer(Wide(), loss=eg.losses.CrossEntropy(), optimizer=optax.adam(1e-3), strategy=FSDP({"data": 8}))
    make = trainer.strategy.compile_init(lambda key, inputs: trainer.state.init_step(key, inputs))
    lowered = jax.jit(make).lower(jax.random.key(0), batch())
    memory = lowered.compile().memory_analysis()
    state = 3 * 4 * PARAMS
    assert memory.output_size_in_bytes < state // 8 + 4096
    # All that a device holds while it makes its part is less than one whole copy of the parameters.
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 4 * PARAMS


def test_a_tensor_parallel_step_keeps_parts_of_the_matrices_alone() -> None:
    rules = {"Dense_*/kernel": (None, "model")}
    whole = compiled_step(Sharded({"data": 2, "model": 4}, data_axes="data"))
    parts = compiled_step(Sharded({"data": 2, "model": 4}, rules=rules))
    assert abs(arguments(whole) - arguments(parts) - 3 * 4 * PARAMS * 3 // 4) < 4096


@pytest.mark.parametrize("module", [None, WideNorm()], ids=["plain", "batch_norm"])
def test_a_data_parallel_step_needs_few_collectives(module: Any) -> None:
    found = collectives(compiled_step(DataParallel(8), module))
    # The losses' denominators are summed before anything is differentiated, everything else together afterwards.
    assert found == {"all-reduce": 2}
