import pytest

from dualspec_jax.distributed import initialize, initialize_arguments

THREE = {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}


def test_environment_decides():
    assert initialize_arguments({}) is None
    assert initialize_arguments({"DUALSPEC_DISTRIBUTED": "auto"}) == {}
    expected = {"coordinator_address": "host:1", "num_processes": 4, "process_id": 3}
    assert initialize_arguments(THREE) == expected
    assert initialize_arguments(THREE | {"DUALSPEC_DISTRIBUTED": "off"}) is None
    initialize({})  # joins nobody, and touches no device


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"DUALSPEC_DISTRIBUTED": "yes"}, "DUALSPEC_DISTRIBUTED = 'yes'"),
        ({"JAX_NUM_PROCESSES": ""}, "JAX_NUM_PROCESSES must be set, too"),
        ({"JAX_PROCESS_ID": "x"}, "JAX_PROCESS_ID = 'x'"),
        ({"JAX_PROCESS_ID": "4"}, "must be below JAX_NUM_PROCESSES = 4"),
    ],
)
def test_wrong_variable_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        initialize_arguments(THREE | changes)
