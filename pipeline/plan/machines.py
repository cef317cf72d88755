"""The machines that a plan is made for, and what they cost.

A GPU's seconds for a sample are the model's floating-point operations, counted, over the vendor's peak of dense
bfloat16 times the share of it that a forward pass reaches.
"""

from dataclasses import dataclass

from operators.errors import ConfigError

PEAK_FLOPS = {"h200": 989e12, "h100": 989e12, "a100": 312e12, "l40s": 362e12, "a10g": 70e12, "l4": 121e12, "t4": 65e12}
"""Operations a second of dense bfloat16 (T4: float16) on tensor cores, by NVIDIA's data sheets, for the SXM forms."""

UTILISATION = 0.35
"""Share of the peak that the forward pass of a vision transformer is taken to reach. Stated, not measured here."""

KMEANS_UTILISATION = 0.1
"""The same of a k-means iteration: on CPUs ours does a fifth to a third of what the bare products would
(`python -m benchmarks.kmeans`), since the scores are read again for the best and the next best."""


@dataclass(frozen=True)
class Machines:
    """What a run would have at its disposal.

    Attributes:
        cpus: CPU workers.
        gpus: how many; 0 encodes on the CPUs.
        gpu: their kind, a key of `PEAK_FLOPS`.
        cpu_price, gpu_price: dollars for an hour of a core, and of a GPU.
    """

    cpus: int
    gpus: int = 0
    gpu: str = "h100"
    cpu_price: float = 0.04
    gpu_price: float = 2.5

    def __post_init__(self) -> None:
        if self.gpu not in PEAK_FLOPS:
            raise ConfigError(f"gpu must be one of {', '.join(sorted(PEAK_FLOPS))}, got {self.gpu!r}")
        for name, least in (("cpus", 1), ("gpus", 0), ("cpu_price", 0), ("gpu_price", 0)):
            if not getattr(self, name) >= least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")

    def gpu_seconds(self, flops: float, utilisation: float = UTILISATION) -> float:
        """Seconds of one GPU for so many floating-point operations."""
        return flops / (PEAK_FLOPS[self.gpu] * utilisation)

    def dollars(self, cpu_seconds: float, gpu_seconds: float) -> float:
        """What so much of their time costs."""
        return (cpu_seconds * self.cpu_price + gpu_seconds * self.gpu_price) / 3600

    def wall_seconds(self, cpu_seconds: float, gpu_seconds: float) -> float:
        """The least time that work takes which is spread evenly over all of them, CPUs and GPUs side by side."""
        return max(cpu_seconds / self.cpus, gpu_seconds / self.gpus if self.gpus else 0.0)
