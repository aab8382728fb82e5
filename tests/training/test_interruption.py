import os
import signal
import threading
import time

import pytest

from contextseg.training import interruption
from contextseg.training.interruption import interruptible


def test_the_handlers_of_before_are_back_afterwards():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with interruptible("contextseg-x"):
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_signals_are_ignored_while_the_program_exits_and_then_as_before(monkeypatch):
    monkeypatch.setattr(interruption, "SECONDS_TO_CLEAN_UP", 0.2)
    received = []
    before = signal.signal(signal.SIGINT, lambda *_: received.append("before"))
    try:
        with pytest.raises(SystemExit) as stopped, interruptible("contextseg-x"):
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert (stopped.value.code, received) == (130, [])
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)
        assert received == ["before"]
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_thread_that_may_not_handle_signals_runs_all_the_same():
    done = []

    def work():
        with interruptible("contextseg-x"):
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]
