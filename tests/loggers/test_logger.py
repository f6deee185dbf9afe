"""The order in which a logger writes records and items."""

from __future__ import annotations

import elegy as eg
from elegy.callbacks import Event, LazyLogs
from elegy.callbacks.items import Item
from elegy.loggers import Logger


class Order(Logger):
    def __init__(self):
        super().__init__(eg.Every(steps=1))
        self.written = []

    def log_scalars(self, record):
        self.written.append(("step", record.step))

    def log_text(self, item):
        self.written.append(("text", item.step))


def test_an_item_is_written_after_the_records_before_it_while_the_device_is_behind():
    logger = Order()
    logger.meet([logger])
    logger.on_train_begin(Event(None, "train", step=0, epoch=0))
    logger.on_epoch_begin(Event(None, "train", step=0, epoch=0))

    def step_logs():
        return LazyLogs(lambda: {"loss": 0.5}, ready=lambda: False)

    for step in range(1, 6):
        if step == 4:
            logger.receive(Item("text", "note", "seen", step=4, epoch=0, in_epoch=True))
        event = Event(None, "train", step=step, epoch=0, batch=step - 1, logs=step_logs(), _step_logs=step_logs)
        logger.on_train_batch_end(event)
    assert logger.written == [("step", 1), ("step", 2), ("step", 3), ("text", 4)]
    logger.on_train_end(Event(None, "train", step=5, epoch=0))
    assert logger.written[4:] == [("step", 4), ("step", 5)]
