import json

import numpy as np
import pytest

from worldmodels_jax.envs.dmc_backend import import_suite, select_backend
from worldmodels_jax.envs.dmc_state import float_fields, restore_simulator, save_simulator

# A ball that falls upon the floor, a goal that an episode may move, and a motor on a hinge.
MODEL = """
<mujoco>
  <worldbody>
    <geom type="plane" size="1 1 1"/>
    <site name="goal" pos="0.1 0.2 0.3"/>
    <body pos="0 0 0.11"><freejoint/><geom size="0.1"/></body>
    <body pos="0 0 1">
      <joint name="hinge" axis="0 1 0" damping="0.5"/>
      <geom type="capsule" size="0.01 0.1"/>
    </body>
  </worldbody>
  <actuator><motor joint="hinge"/></actuator>
</mujoco>
"""


@pytest.fixture
def physics():
    try:
        import_suite(select_backend())
    except ImportError as error:
        if "draw" not in str(error):
            raise
        pytest.skip(f"MuJoCo cannot draw here: {error}")
    from dm_control import mujoco

    physics = mujoco.Physics.from_xml_string(MODEL)
    yield physics
    physics.free()


def _pristine(physics):
    return {name: field.copy() for name, field in float_fields(physics).items()}


def _random():
    return np.random.RandomState(np.random.MT19937(0))


def test_fields_are_views_of_the_numbers_of_the_model(physics):
    fields = float_fields(physics)
    np.testing.assert_array_equal(fields["site_pos"], [[0.1, 0.2, 0.3]])
    np.testing.assert_array_equal(fields["dof_damping"], [0, 0, 0, 0, 0, 0, 0.5])
    assert "geom_type" not in fields
    fields["dof_damping"][6] = 2.0
    assert physics.model.dof_damping[6] == 2.0


def test_physics_time_and_control_are_restored(physics):
    pristine = _pristine(physics)
    physics.set_control([0.3])
    physics.step(40)
    saved = json.loads(json.dumps(save_simulator(physics, _random(), pristine)))
    assert physics.data.ncon == 1

    def play():
        physics.step(5)
        data = physics.data
        return [x.copy() for x in (data.qpos, data.qvel, data.ctrl, data.site_xpos)] + [data.time]

    expected = play()
    physics.reset()
    restore_simulator(physics, _random(), pristine, saved)
    for value, other in zip(play(), expected, strict=True):
        np.testing.assert_array_equal(value, other)


def test_changed_fields_are_saved_and_the_others_put_back(physics):
    pristine = _pristine(physics)
    fields = float_fields(physics)
    fields["site_pos"][0] = 0.7, 0.8, 0.9
    saved = save_simulator(physics, _random(), pristine)
    assert set(saved["model"]) == {"site_pos", "jnt_stiffness"}
    # An episode of which the saved one knows nothing.
    fields["site_pos"][0] = 5.0
    fields["dof_damping"][6] = 5.0
    restore_simulator(physics, _random(), pristine, saved)
    np.testing.assert_array_equal(fields["site_pos"][0], [0.7, 0.8, 0.9])
    assert fields["dof_damping"][6] == 0.5
    # What follows from the model is computed anew.
    np.testing.assert_array_equal(physics.data.site_xpos[0], [0.7, 0.8, 0.9])


def test_the_random_state_is_restored_with_the_second_number_of_a_pair(physics):
    pristine, random = _pristine(physics), _random()
    # Normal numbers are drawn in pairs: one is kept for the next call.
    random.randn(5)
    saved = json.loads(json.dumps(save_simulator(physics, random, pristine)))
    expected = [random.randn(4), random.uniform(size=700)]
    other = np.random.RandomState(np.random.MT19937(1))
    restore_simulator(physics, other, pristine, saved)
    np.testing.assert_array_equal(other.randn(4), expected[0])
    np.testing.assert_array_equal(other.uniform(size=700), expected[1])
