"""Join the processes of one training, as the environment says; `launch/` sets it.

DUALSPEC_DISTRIBUTED=auto: JAX finds coordinator, count and index by itself (TPU slice, SLURM, Open MPI, Kubernetes).
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, all three: those. Neither, or off: one process.
"""

from collections.abc import Mapping

_NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def initialize_arguments(environ: Mapping[str, str]) -> dict | None:
    """Return the arguments of `jax.distributed.initialize`, or None for a single process.

    Raises:
      ValueError: naming the variable, its value and the rule.
    """
    mode = environ.get("DUALSPEC_DISTRIBUTED", "")
    if mode not in ("", "auto", "off"):
        raise ValueError(f"DUALSPEC_DISTRIBUTED = {mode!r}: must be auto or off")
    given = [name for name in _NAMES if environ.get(name)]
    if mode == "auto":
        return {}
    if mode == "off" or not given:
        return None
    if len(given) < len(_NAMES):
        missing = ", ".join(name for name in _NAMES if name not in given)
        raise ValueError(f"{given[0]} = {environ[given[0]]!r}: {missing} must be set, too")
    numbers = {}
    for name in _NAMES[1:]:
        if not environ[name].isdecimal():
            raise ValueError(f"{name} = {environ[name]!r}: must be a whole number")
        numbers[name] = int(environ[name])
    count, index = numbers.values()
    if index >= count:
        raise ValueError(f"JAX_PROCESS_ID = {index}: must be below JAX_NUM_PROCESSES = {count}")
    return {"coordinator_address": environ[_NAMES[0]], "num_processes": count, "process_id": index}


def initialize(environ: Mapping[str, str]) -> None:
    """Join the other processes, if there are any; before any device is touched.

    Raises:
      ValueError: see `initialize_arguments`.
    """
    arguments = initialize_arguments(environ)
    if arguments is None:
        return
    import jax

    jax.distributed.initialize(**arguments)
