"""A lifecycle node that has declared its parameters, and lets them be changed only while nothing depends on them.

Imports rclpy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
from rclpy.exceptions import ParameterUninitializedException
from rclpy.lifecycle import LifecycleNode
from rclpy.parameter import Parameter

from edge_vla.robot.ros2.parameters import LIVE, Parameters, Value, described

LISTS = {"joint_names": Parameter.Type.STRING_ARRAY, "start_pose": Parameter.Type.DOUBLE_ARRAY}


class DeclaredNode(LifecycleNode, ABC):  # type: ignore[misc]  # rclpy has no types where it is not installed
    """What a subclass says: whether its parameters are `settled`, and how it follows a new instruction."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, **options)
        for parameter, default, text in described():
            self.declare_parameter(parameter, LISTS.get(parameter, default), ParameterDescriptor(description=text))
        self.add_on_set_parameters_callback(self._on_set)

    @property
    def full_name(self) -> str:
        return f"{self.get_namespace().rstrip('/')}/{self.get_name()}"

    @property
    @abstractmethod
    def settled(self) -> bool: ...

    @abstractmethod
    def follow(self, instruction: str) -> None: ...

    def parameters(self) -> Parameters:
        """As they are set now. UsageError for a value that does not fit."""
        return Parameters(**{name: self._value(name, default) for name, default, _ in described()})

    def _value(self, name: str, default: Value) -> Any:
        try:
            value = self.get_parameter(name).value
        except ParameterUninitializedException:  # a list that nobody gave
            return default
        return tuple(value) if isinstance(default, tuple) else value

    def _on_set(self, changed: list[Any]) -> Any:
        fixed = {name for name, _, _ in described()} - set(LIVE)
        refused = sorted(each.name for each in changed if each.name in fixed)
        if refused and self.settled:
            remedy = f"ros2 lifecycle set {self.full_name} cleanup first"
            return SetParametersResult(
                successful=False, reason=f"{refused[0]} is read when the node is configured: {remedy}"
            )
        for each in changed:
            if each.name == "instruction":
                self.follow(each.value)
        return SetParametersResult(successful=True)
