"""The updates of ``test_learner_sharded`` over the eight virtual devices of another process."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).with_name("test_learner_sharded.py")


def test_updates_over_eight_devices_are_those_of_one() -> None:
    updates = ("world_model_update_by_shard_map", "agent_update", "joint_update")
    names = [f"test_{update}[8]" for update in updates]
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"  # the last counts
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *(f"{TESTS}::{name}" for name in names)],
        cwd=TESTS.parents[2],
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
