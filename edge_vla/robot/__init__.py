"""What stands between an action and a motor: units declared, limits kept, and rest where no fresh action comes.

    from edge_vla.robot import Declaration, Gate

    robot = Declaration.read(Path("arm.toml"))
    with Gate(robot, arm.send, policy.config.statistics["bridge_orig"], on_lapse=arm.stop) as gate:
        while True:
            gate.act(policy.act(camera.read(), "put the spoon on the towel").values)

Not a safety-rated function: the robot needs a stop of its own. Needs numpy only; neither torch nor the policy.
"""

from edge_vla.robot.gate import Gate, GateState
from edge_vla.robot.limiter import Cause, Counters, Limited, Limiter, NotFiniteError
from edge_vla.robot.units import Declaration
from edge_vla.robot.watchdog import Watchdog

__all__ = [
    "Cause",
    "Counters",
    "Declaration",
    "Gate",
    "GateState",
    "Limited",
    "Limiter",
    "NotFiniteError",
    "Watchdog",
]
