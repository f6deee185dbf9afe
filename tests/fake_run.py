"""A stand-in for the trainer and its loop: what a callback can see of them, and nothing else."""

import dataclasses
import json

from elegy.callbacks import CallbackList, Event, LazyLogs
from elegy.checkpoint.manifest import METADATA


@dataclasses.dataclass(frozen=True)
class FakeState:
    params: object
    own: object = None
    key: int = 0
    optimizer: object = None
    _logs: tuple = ()

    def get_params(self):
        return self.params

    def replace(self, **fields):
        return dataclasses.replace(self, **fields)


class FakeTrainer:
    def __init__(self):
        self.state = FakeState("p0")
        self.stop_training = False
        self.step = 0
        self.epoch = 0
        self.saved = []
        self.callbacks = None

    def save(self, path, *, saver=None, then=lambda: None):
        assert path.parent.is_dir()
        self.saved.append(path.name)
        path.mkdir(exist_ok=True)
        (path / METADATA).write_text(json.dumps(self.callbacks.state_dict()))
        then()


def run(callbacks, epoch_logs, *, trainer=None, steps=4, first_epoch=0, batch_logs=None, reads=None, states=None):
    """Emits what `fit` would over `len(epoch_logs)` epochs; returns the trainer.

    `batch_logs(step)` are the running values after that step; `reads` collects the steps at which they were read.
    """
    trainer = trainer or FakeTrainer()
    trainer.stop_training = False
    trainer.callbacks = callbacks = CallbackList(callbacks)
    last, done = first_epoch + len(epoch_logs), 0
    validates = any(name.startswith("val_") for logs in epoch_logs for name in logs)
    prefixes = ("val_",) if validates else ()

    def emit(hook, epoch, batch=None, logs=None):
        if callbacks.listens(hook):
            callbacks.emit(
                hook,
                Event(
                    trainer,
                    "train",
                    trainer.step,
                    epoch,
                    batch,
                    {} if logs is None else logs,  # truth would read them
                    epochs=last,
                    steps=steps,
                    batch_size=8,
                    examples=done * 8,
                    elapsed=done * 0.5,
                    evaluations=prefixes,
                    _receive=callbacks.receive,
                    evaluated=prefixes if hook == "on_epoch_end" and any(n.startswith("val_") for n in logs) else (),
                ),
            )

    def lazy():
        step = trainer.step

        def fetch():
            if reads is not None:
                reads.append(step)
            return batch_logs(step)

        return LazyLogs(fetch if batch_logs else dict)

    if states is not None:
        callbacks.load_state_dict(states)
    epoch = first_epoch
    try:
        emit("on_train_begin", epoch)
        for epoch in range(first_epoch, last):
            emit("on_epoch_begin", epoch)
            for batch in range(steps):
                trainer.step += 1
                done += 1
                step = trainer.step
                trainer.state = FakeState(f"p{step}", f"own{step}", step)
                emit("on_train_batch_end", epoch, batch, lazy())
                if trainer.stop_training:
                    break
            trainer.epoch = epoch + (batch + 1 == steps)
            emit("on_epoch_end", epoch, None, epoch_logs[epoch - first_epoch])
            if trainer.stop_training:
                break
    finally:
        emit("on_train_end", epoch)
    return trainer
