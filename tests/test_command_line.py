import argparse
import subprocess
import sys

import pytest

from dualspec_jax.flag_types import guarded

PROGRAM = """
import sys
from dualspec_jax.command_line import run
def main(argv):
    {body}
run(main)
"""


def _run(body):
    return subprocess.run([sys.executable, "-c", PROGRAM.format(body=body)], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ("raise ValueError('field = 3:\\n  too small')", 2, "error: field = 3: too small\n"),
        ("open('/nonexistent/x')", 2, "error: [Errno 2] No such file or directory: '/nonexistent/x'\n"),
        ("raise FloatingPointError('loss = nan at step 5')", 1, "error: loss = nan at step 5\n"),
        (
            "raise ValueError('RESOURCE_EXHAUSTED: Error writing: No space left on device [os_error_code=28]')",
            1,
            "error: [Errno 28] No space left on device\n",
        ),
        ("raise KeyboardInterrupt", 130, ""),
        ("sys.exit(143)", 143, ""),
        ("return None", 0, ""),
    ],
)
def test_exit_status_and_message(body, status, message):
    result = _run(body)
    assert (result.returncode, result.stderr) == (status, message)


@pytest.mark.parametrize(
    "body",
    [
        "raise TypeError('a bug')",
        "import json; json.loads('{')",
        "import jax.numpy as jnp; jnp.zeros(3) + jnp.zeros(2)",
    ],
)
def test_bugs_keep_their_traceback(body):
    """A ValueError from inside a library is a bug of ours, or at least not a message to the user."""
    result = _run(body)
    assert result.returncode == 1
    assert "Traceback" in result.stderr


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("n = 3:\n  too small"), 2, "error: n = 3: too small\n"),
        (KeyboardInterrupt(), 130, "interrupted; again\n"),
    ],
)
def test_argparse_command_lines_end_in_one_line(error, status, said, capsys):
    def work(args):
        raise error

    assert guarded(work, argparse.Namespace(), "again") == status
    assert capsys.readouterr().err == said
