import signal
import subprocess
import sys
import time

import pytest

from dualspec_jax.interrupt import run_interruptibly


def test_result_and_exception_come_through():
    assert run_interruptibly(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        run_interruptibly(divmod, 7, 0)


def test_ctrl_c_ends_a_long_native_call_at_once():
    """The call holds its thread for a minute and never looks at signals, as a compiled program does."""
    program = """
import ctypes, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells turn it off for what they run in the background
from dualspec_jax.interrupt import leave, run_interruptibly
print("ready", flush=True)
try:
    run_interruptibly(ctypes.CDLL(None).sleep, 60)
except KeyboardInterrupt:
    leave(130)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=90) == 130
        assert time.monotonic() - start < 30
