"""The host as one protocol's front end has it: a `Service` whose outcomes are counted under the protocol's name."""

from __future__ import annotations

from edge_vla.serve.messages import Metadata, Observation, RefusedError, Reply
from edge_vla.serve.middle import Middle
from edge_vla.serve.tokens import CALLER


class Counted:
    """A host as one protocol's front end sees it: the same, counted under the protocol's name."""

    def __init__(self, host: Middle, proto: str) -> None:
        self._host, self.proto = host, proto

    @property
    def metadata(self) -> Metadata:
        return self._host.metadata

    @property
    def ready(self) -> bool:
        return self._host.ready

    async def act(self, observation: Observation) -> Reply:
        caller = CALLER.get()
        if caller is not None:
            try:
                caller.spend()
            except RefusedError as error:
                raise self.refused(error) from None
        return await self._host.act(observation, self.proto)

    def reset(self, robot: str) -> None:
        self._host.reset(robot)

    def leave(self, robot: str) -> None:
        self._host.leave(robot)

    def refused(self, error: RefusedError) -> RefusedError:
        return self._host.refused(error, self.proto)
