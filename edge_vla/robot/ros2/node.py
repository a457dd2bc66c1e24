"""The lifecycle node: configure loads and proves the policy, activate acts, deactivate brings the robot to rest.

The executor only puts frames into a slot; the policy has a thread of its own (`pilot.py`). Where the policy runs is the
caller's: `open_source`. Imports rclpy, so it is imported only when chosen.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, get_args

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn

from edge_vla.errors import BackendError, EdgeVLAError, UsageError
from edge_vla.robot.limiter import Limiter
from edge_vla.robot.ros2 import pictures, report
from edge_vla.robot.ros2.declared import DeclaredNode
from edge_vla.robot.ros2.forms import Form, Role, form_of
from edge_vla.robot.ros2.freshness import AgeRule, ClockWatch, jump
from edge_vla.robot.ros2.messages import DIAGNOSTICS, TEXT, Origin, Stamp, diagnostics
from edge_vla.robot.ros2.parameters import Of, Parameters
from edge_vla.robot.ros2.pilot import Pilot, Source
from edge_vla.robot.ros2.qos import Qos
from edge_vla.robot.ros2.topics import Publisher, Topic, outlived, profile
from edge_vla.robot.ros2.typed import build, message_class
from edge_vla.robot.units import Declaration, Floats

OpenSource = Callable[[Parameters, Declaration], Source]
"""Loads, warms up and proves a policy; EdgeVLAError where it cannot."""

TICK_S: Final = 0.5
REST_S: Final = 2.0  # to come to rest inside the limits; after that it is stopped at once
SUCCESS, FAILURE, ERROR = (
    TransitionCallbackReturn.SUCCESS,
    TransitionCallbackReturn.FAILURE,
    TransitionCallbackReturn.ERROR,
)


@dataclass(eq=False)
class Ready:
    """What `configure` made and `cleanup` gives back."""

    parameters: Parameters
    robot: Declaration
    form: Form
    source: Source
    rule: AgeRule
    topics: list[Topic] = field(default_factory=list)
    publishers: dict[Role, Publisher] = field(default_factory=dict)
    subscriptions: list[Any] = field(default_factory=list)


class PolicyNode(DeclaredNode):
    """`failure` is why it cannot act, empty while it can. `mismatches`: the last ones that DDS reported."""

    def __init__(self, open_source: OpenSource, name: str = "edge_vla", **options: Any) -> None:
        self._ready: Ready | None = None
        super().__init__(name, **options)
        self._open_source = open_source
        self._pilot: Pilot | None = None
        self._instruction, self.failure = "", ""
        self.mismatches = deque[str](maxlen=20)
        self.error: EdgeVLAError | None = None
        self._last_frame: float | None = None
        self._said = ""
        self._clock_watch = ClockWatch()
        # Lifecycle's services are in the default group: a policy that loads there keeps nothing else waiting.
        self._images, self._others = MutuallyExclusiveCallbackGroup(), MutuallyExclusiveCallbackGroup()
        self._diagnostics = self._make_diagnostics()
        self._fatal = self.create_guard_condition(self._on_fatal, callback_group=self._others)
        self.create_timer(
            TICK_S, self._tick, callback_group=self._others, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )
        threshold = JumpThreshold(
            min_forward=Duration(seconds=1), min_backward=Duration(nanoseconds=-1), on_clock_change=True
        )
        self._jumps = self.get_clock().create_jump_callback(threshold, post_callback=self._on_jump)

    # lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:  # noqa: ARG002
        """Read the parameters, load and prove the policy, make the topics. A user's mistake leaves it unconfigured."""
        self.failure, self.error = "", None
        try:
            parameters = self.parameters()
            parameters.check()
            robot = Declaration.read(Path(parameters.robot))
            robot = dataclasses.replace(robot, period_ms=1e3 * parameters.period_s(robot.period_ms / 1e3))
            form = form_of(parameters.action_form, robot, parameters.joint_names)
            qos = {of: parameters.qos(of) for of in get_args(Of)}
            for channel in form.channels:
                message_class(channel.type)
            began = time.monotonic()
            source = self._open_source(parameters, robot)
        except EdgeVLAError as error:
            return self._refuse(error)
        try:
            Limiter(robot, source.statistics)  # what it refuses is refused now, and not with the arm about to move
            simulated = bool(self.get_parameter("use_sim_time").value)
            rule = AgeRule(robot.max_age_s, parameters.accept_unstamped, simulated)
            self._ready = Ready(parameters, robot, form, source, rule)
            self._instruction = self._instruction or parameters.instruction
            self._connect(self._ready, qos)
        except EdgeVLAError as error:
            return self._refuse(error, source)
        except (RuntimeError, ValueError) as error:  # rclpy's own, for a topic's name or its type
            return self._refuse(
                UsageError(f"a topic cannot be made: {error}: ros2 topic info --verbose shows it"), source
            )
        self.get_logger().info(f"{source.name} is ready after {time.monotonic() - began:.1f} s")
        return SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """An episode begins, the robot at rest: from the next frame on it moves."""
        ready = self._configured()
        try:
            pilot = Pilot(
                ready.source,
                ready.robot,
                ready.rule,
                self._publish,
                self._ros_now,
                instruction=self._instruction,
                on_lapse=lambda reason: self.get_logger().warning(f"the robot comes to rest: {reason}"),
                on_fatal=self._note_fatal,
            )
            super().on_activate(state)
            pilot.start(ready.parameters.start_pose or None)
        except EdgeVLAError as error:
            super().on_deactivate(state)
            return self._refuse(error)
        self._pilot = pilot
        return SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """The robot comes to rest, inside its limits where there is time, before the publishers fall silent."""
        self._rest("the node is deactivated")
        super().on_deactivate(state)
        return ERROR if self.failure else SUCCESS

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:  # noqa: ARG002
        self._give_back()
        return SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """From any state: rest first, then let go."""
        self._rest("the node is shut down")
        super().on_shutdown(state)
        self._give_back()
        return SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Rest, let go, and end finalised: a policy that failed while it acted is not trusted again."""
        self._rest("the node failed")
        super().on_error(state)
        self._give_back()
        self.failure = self.failure or "a transition failed: see the log above"
        self.get_logger().error(f"finalised: {self.failure}")
        return FAILURE

    # what `run.py` asks

    @property
    def ended(self) -> bool:
        """Whether it is finalised and its process may end."""
        return self._label() == "finalized" and (not self.failure or self.parameters().exit_on_error)

    def start_by_itself(self, give_up: Callable[[], None]) -> None:
        """Configure and activate as soon as it spins; `give_up` where either is refused."""

        def start() -> None:
            once.cancel()
            if self.trigger_configure() != SUCCESS or self.trigger_activate() != SUCCESS:
                give_up()

        once = self.create_timer(0.0, start, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def end(self) -> None:
        """Rest and shut down, from whatever state."""
        if self._label() in ("unconfigured", "inactive", "active"):
            self.trigger_shutdown()
        else:
            self._rest("the process ends")

    def _label(self) -> str:
        return str(self._state_machine.current_state[1])

    # topics

    def _connect(self, ready: Ready, qos: Mapping[Of, Qos]) -> None:
        parameters = ready.parameters
        kind = pictures.IMAGE_TYPES[parameters.image_transport]
        on_image = self._on_raw if parameters.image_transport == "raw" else self._on_compressed
        self._subscribe(ready, parameters.image_topic, kind, "image_qos", qos["image"], on_image, self._images)
        self._subscribe(
            ready,
            parameters.instruction_topic,
            TEXT,
            "instruction_qos",
            qos["instruction"],
            self._on_instruction,
            self._others,
        )
        for channel in ready.form.channels:
            name = parameters.action_topic if channel.role == "action" else parameters.gripper_topic
            topic = Topic(self.resolve_topic_name(name), "action_qos", qos["action"], "publisher")
            ready.topics.append(topic)
            ready.publishers[channel.role] = outlived(
                self.create_lifecycle_publisher(
                    message_class(channel.type),
                    topic.name,
                    profile(topic.qos),
                    event_callbacks=topic.events(self, self._on_mismatch),
                    callback_group=self._others,
                )
            )

    def _subscribe(
        self, ready: Ready, name: str, kind: str, parameter: str, qos: Qos, callback: Callable[..., None], group: Any
    ) -> None:
        topic = Topic(self.resolve_topic_name(name), parameter, qos, "subscription")
        ready.topics.append(topic)
        subscription = self.create_subscription(
            message_class(kind),
            topic.name,
            callback,
            profile(qos),
            callback_group=group,
            event_callbacks=topic.events(self, self._on_mismatch),
        )
        ready.subscriptions.append(outlived(subscription))

    def _on_raw(self, message: Any) -> None:
        self._on_image(*pictures.raw(message))

    def _on_compressed(self, message: Any) -> None:
        self._on_image(*pictures.compressed(message))

    def _on_image(self, origin: Origin, read: Callable[[], Any]) -> None:
        self._last_frame = now = time.monotonic()
        if (pilot := self._pilot) is not None:
            pilot.offer(origin, now, read)

    def _on_instruction(self, message: Any) -> None:
        self.follow(message.data)

    @property
    def settled(self) -> bool:
        return self._ready is not None

    def follow(self, instruction: str) -> None:
        if instruction != self._instruction:
            self.get_logger().info(f"instruction: {instruction}")
        self._instruction = instruction
        if (pilot := self._pilot) is not None:
            pilot.instruction = instruction

    def _publish(self, values: Floats, origin: Origin, age_s: float) -> None:
        ready = self._configured()
        for channel, message in zip(ready.form.channels, ready.form.messages(values, origin, age_s), strict=True):
            ready.publishers[channel.role].publish(build(channel.type, message))

    def _on_mismatch(self, reason: str) -> None:
        self.mismatches.append(reason)
        self.get_logger().error(reason)

    # clocks and failures

    def _ros_now(self) -> int:
        return int(self.get_clock().now().nanoseconds)

    def _on_jump(self, found: Any) -> None:
        moved, now = found.delta.nanoseconds, self._ros_now()
        if self._pilot is not None and moved != now:  # the first time that /clock says is no jump
            self._jumped(jump(moved / 1e9, simulated=True))

    def _jumped(self, reason: str) -> None:
        self.get_logger().warning(reason)
        if (pilot := self._pilot) is not None:
            pilot.jumped(reason)

    def _note_fatal(self, error: Exception) -> None:
        """In the pilot's thread: the transition itself is the executor's."""
        self._fail(error)
        self._fatal.trigger()

    def _on_fatal(self) -> None:
        if self._pilot is not None:
            self.trigger_deactivate()

    def _fail(self, error: Exception) -> None:
        self.error = error if isinstance(error, EdgeVLAError) else BackendError(f"{type(error).__name__}: {error}")
        self.failure = str(self.error)

    def _refuse(self, error: EdgeVLAError, source: Source | None = None) -> TransitionCallbackReturn:
        if self._ready is None and source is not None:
            source.close()
        self._give_back()
        self._fail(error)
        self.get_logger().error(str(error))
        return FAILURE

    # rest, and what is given back

    def _rest(self, reason: str) -> None:
        pilot, self._pilot = self._pilot, None
        if pilot is not None:
            pilot.stop(reason, REST_S)

    def _give_back(self) -> None:
        ready, self._ready = self._ready, None
        if ready is None:
            return
        for subscription in ready.subscriptions:
            self.destroy_subscription(subscription)
        for publisher in ready.publishers.values():
            self.destroy_lifecycle_publisher(publisher)
        ready.source.close()

    def _configured(self) -> Ready:
        if self._ready is None:
            raise RuntimeError("not configured")
        return self._ready

    # reports

    def _make_diagnostics(self) -> Any:
        try:
            kind, name = message_class(DIAGNOSTICS), "/diagnostics"
        except BackendError:
            kind, name = message_class(TEXT), "~/diagnostics"
        self._as_array = kind is not message_class(TEXT)
        return self.create_publisher(kind, name, 10)

    def _tick(self) -> None:
        now = self._snapshot()
        lines = report.statuses(now)
        robot = "" if self._ready is None else self._ready.robot.name
        if self._as_array:
            message = build(DIAGNOSTICS, diagnostics(lines, Stamp.of(self._ros_now()), robot))
        else:
            message = build(TEXT, report.as_text(lines))
        self._diagnostics.publish(message)
        reason = now.pilot.reason if now.pilot is not None else ""
        if reason and reason != self._said:
            self.get_logger().warning(f"no action: {reason}")
        self._said = reason
        if not self.get_parameter("use_sim_time").value:
            moved = self._clock_watch.look(self._ros_now)
            if moved:
                self._jumped(moved)

    def _snapshot(self) -> report.Snapshot:
        ready, pilot, last = self._ready, self._pilot, self._last_frame
        return report.Snapshot(
            node=self.full_name,
            state=self._label(),
            source="" if ready is None else ready.source.name,
            instruction=self._instruction,
            failure=self.failure,
            image_topic="" if ready is None else ready.topics[0].name,
            silent_s=None if last is None else time.monotonic() - last,
            slow_s=1.0 if ready is None else max(1.0, ready.robot.lapse_s),
            mismatches=[] if ready is None else [m for topic in list(ready.topics) if (m := topic.mismatch(self))],
            pilot=None if pilot is None else pilot.state,
            gate=None if pilot is None else pilot.gate.state,
        )
