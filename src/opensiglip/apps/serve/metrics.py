"""What Prometheus reads at /metrics."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Requests, their seconds, inputs, sizes of batches, the queue, and the process's memory and CPU."""

    def __init__(self, waiting: Callable[[], int]) -> None:
        """`waiting`: the inputs in the queue now."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter("opensiglip_requests", "Requests answered.", ["path", "status"], registry=self.registry)
        self.seconds = Histogram(
            "opensiglip_request_seconds", "From request to answer.", ["path"], buckets=SECONDS, registry=self.registry
        )
        self.inputs = Counter("opensiglip_inputs", "Texts and images answered.", ["kind"], registry=self.registry)
        self.batches = Histogram("opensiglip_batch_inputs", "Inputs of a batch.", buckets=SIZES, registry=self.registry)
        Gauge("opensiglip_queue_inputs", "Inputs that wait.", registry=self.registry).set_function(waiting)

    def text(self) -> bytes:
        """The text format, version 0.0.4."""
        return generate_latest(self.registry)
