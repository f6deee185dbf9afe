"""Ctrl-C: the first ends the run cleanly, the second at once."""

import signal
import threading
import time
from types import SimpleNamespace

import pytest

from elegy.callbacks import handle_interrupts, interrupt


@pytest.fixture
def trainer():
    return SimpleNamespace(stop_training=False)


@pytest.fixture(autouse=True)
def _same_handler_afterwards():
    before = signal.getsignal(signal.SIGINT)
    yield
    assert signal.getsignal(signal.SIGINT) is before


def ctrl_c():
    signal.raise_signal(signal.SIGINT)


def test_the_first_stops_and_says_so_once(trainer, capsys):
    with handle_interrupts(trainer) as interrupts:
        assert not interrupts.interrupted
        ctrl_c()
        assert trainer.stop_training
        assert interrupts.interrupted
    out, err = capsys.readouterr()
    assert out == ""
    assert "training ends after the running step" in err


def test_the_second_raises(trainer):
    with handle_interrupts(trainer):
        ctrl_c()
        with pytest.raises(KeyboardInterrupt):
            ctrl_c()


def test_the_second_waits_for_the_end_of_what_holds_it(trainer):
    done = []

    def hold(interrupts):
        with interrupts:
            ctrl_c()
            ctrl_c()
            done.append(1)

    with handle_interrupts(trainer) as interrupts:
        ctrl_c()
        with pytest.raises(KeyboardInterrupt):
            hold(interrupts)
        with interrupts:
            done.append(2)
    assert done == [1, 2]


def test_the_first_does_not_wait(trainer):
    with handle_interrupts(trainer) as interrupts, interrupts:
        ctrl_c()
        assert trainer.stop_training


def test_afterwards_ctrl_c_raises_as_before(trainer):
    with handle_interrupts(trainer):
        pass
    with pytest.raises(KeyboardInterrupt):
        ctrl_c()
    assert not trainer.stop_training


def test_a_block_within_a_block_counts_on(trainer):
    with handle_interrupts(trainer) as outer:
        with handle_interrupts(trainer) as inner:
            ctrl_c()
        assert inner is outer
        assert outer.interrupted
        with pytest.raises(KeyboardInterrupt):
            ctrl_c()


def test_another_trainer_within_has_its_own_count(trainer):
    other = SimpleNamespace(stop_training=False)
    with handle_interrupts(trainer):
        with handle_interrupts(other):
            ctrl_c()
        assert (trainer.stop_training, other.stop_training) == (False, True)
        ctrl_c()
    assert trainer.stop_training


def test_nothing_happens_in_another_thread(trainer):
    found = []

    def work():
        with handle_interrupts(trainer) as interrupts:
            assert not interrupts.interrupted
            found.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


def test_ignored_interrupts_stay_ignored(trainer):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with handle_interrupts(trainer):
            ctrl_c()
    finally:
        signal.signal(signal.SIGINT, before)
    assert not trainer.stop_training


def test_a_stream_that_refuses_does_not_stop_the_stop(trainer, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("reentrant call")

    monkeypatch.setattr("sys.stderr", SimpleNamespace(write=refuse, flush=refuse))
    with handle_interrupts(trainer):
        ctrl_c()
    assert trainer.stop_training


def test_the_handler_looks_again_only_while_it_is_installed(trainer, monkeypatch):
    monkeypatch.setattr(interrupt, "PATIENCE", 0.0005)
    found = []
    before = signal.signal(signal.SIGTERM, lambda *_: found.append("the handler from before"))
    try:
        for k in range(50):
            with handle_interrupts(trainer):
                signal.raise_signal(signal.SIGTERM)
                time.sleep(0.0005 + k * 1e-5)
        time.sleep(0.01)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert found == []


def test_a_trainer_of_one_process_of_several_stops_at_its_own_signal(trainer, monkeypatch):
    monkeypatch.setattr("jax.distributed.is_initialized", lambda: True)
    trainer.strategy = SimpleNamespace(processes=1)
    with handle_interrupts(trainer) as interrupts:
        ctrl_c()
    assert (trainer.stop_training, interrupts.signal) == (True, signal.SIGINT)
