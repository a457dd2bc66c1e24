"""What the server counts, for Prometheus: a registry of its own, names that dashboards can rely on."""

from __future__ import annotations

from functools import cache
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from edge_vla.serve.messages import Code

BUCKETS_MS: Final = (1, 2, 5, 10, 20, 50, 100, 150, 200, 300, 500, 1000, 2000)
BUCKETS: Final = tuple(ms / 1e3 for ms in BUCKETS_MS)
DROPPED: Final = {
    Code.SUPERSEDED: "superseded",
    Code.DEADLINE: "deadline",
    Code.OVERLOAD: "overload",
    Code.RATE: "rate",
    Code.SHUTTING_DOWN: "shutdown",
    Code.MALFORMED: "invalid",
    Code.TOO_LARGE: "invalid",
    Code.IMAGE_SHAPE: "invalid",
    Code.FROZEN: "invalid",
    Code.INSTRUCTION: "invalid",
    Code.UNNORM_KEY: "invalid",
}
STAGES: Final = ("queue", "infer", "total")
REASONS: Final = (*sorted(set(DROPPED.values())), "disconnect")


class Metrics:
    """Counters and gauges of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "edgevla_requests", "Observations and refused messages by outcome.", ["proto", "code"], registry=registry
        )
        self.seconds = Histogram(
            "edgevla_request_seconds", "Time by stage.", ["stage"], buckets=BUCKETS, registry=registry
        )
        self.age = Histogram(
            "edgevla_obs_age_seconds", "Age of the image when its action was ready.", buckets=BUCKETS, registry=registry
        )
        self.dropped = Counter("edgevla_dropped", "Observations without an action.", ["reason"], registry=registry)
        self.depth = Gauge("edgevla_queue_depth", "Observations that wait.", registry=registry)
        self.inflight = Gauge("edgevla_inflight", "Observations on the device.", registry=registry)
        self.sessions = Gauge("edgevla_sessions", "Robots whose drafts are kept.", registry=registry)
        self.connections = Gauge("edgevla_connections", "Open connections.", registry=registry)
        self.invalid_tokens = Counter("edgevla_invalid_token", "Tokens that were no action ids.", registry=registry)
        self.nonfinite = Counter("edgevla_nonfinite", "Non-finite numbers instead of an action.", registry=registry)
        self.suspect = Counter(
            "edgevla_suspect_images", "Images equal to the robot's last one, or black.", ["kind"], registry=registry
        )
        self.memory = Gauge("edgevla_gpu_memory_bytes", "Allocated on the GPU; 0 without one.", registry=registry)
        self.ready = Gauge("edgevla_ready", "1 when observations are answered.", registry=registry)
        self.model = Gauge("edgevla_model_info", "Which artifact is served.", ["sha", "bits"], registry=registry)
        for kind in ("frozen", "black"):
            self.suspect.labels(kind)
        for reason in REASONS:
            self.dropped.labels(reason)
        self._stages = [self.seconds.labels(stage) for stage in STAGES]
        self._answered = cache(lambda proto: self.requests.labels(proto, "OK"))  # a label's look-up is slow

    def answered(self, proto: str, queue_s: float, infer_s: float, age_s: float) -> None:
        self._answered(proto).inc()
        for stage, seconds in zip(self._stages, (queue_s, infer_s, queue_s + infer_s), strict=True):
            stage.observe(seconds)
        self.age.observe(age_s)

    def refused(self, proto: str, code: Code) -> None:
        self.requests.labels(proto, code.value).inc()
        if code in DROPPED:
            self.dropped.labels(DROPPED[code]).inc()
        if code is Code.NUMERIC:
            self.nonfinite.inc()

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
