"""The config of `winnow nightly`: that of a curation, and what to do about a pool that grows, changes and drifts."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.config.problems import KeyProblem
from pipeline.curation import Curation
from pipeline.given import Policy


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Thresholds(_Strict):
    """What to do about a measure of drift; it counts only where it is also above what chance explains.

    Attributes:
        warn: above it, the night says so, in its summary and its report too.
        stop: above it, the night ends with exit code 3 before anything is published. None never stops.
    """

    warn: float | None = Field(default=None, ge=0)
    stop: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.warn is not None and self.stop is not None and self.stop < self.warn:
            raise KeyProblem(("stop",), f"must be at least warn, {self.warn}, got {self.stop}")
        return self


_WARN = {"reject_rate": 0.02, "score": 0.1, "cluster_shares": 0.1, "pressure": 0.03}


class DriftSettings(_Strict):
    """When a night's new rows are too unlike those of the night that everything was fitted on.

    Attributes:
        reject_rate: the share of new samples that are rejected, less that of the first night. Warns above 0.02.
        score: of each score step, the Kolmogorov-Smirnov distance of its distributions. Warns above 0.1.
        cluster_shares: of each clustering, the total variation distance of the clusters' shares. Warns above 0.1.
        pressure: of each clustering, the share of new rows farther from their centroid than 99 % of the first night's:
            rows for which there should be new clusters. 0.01 is what to expect. Warns above 0.03.
    """

    reject_rate: Thresholds = Thresholds(warn=_WARN["reject_rate"])
    score: Thresholds = Thresholds(warn=_WARN["score"])
    cluster_shares: Thresholds = Thresholds(warn=_WARN["cluster_shares"])
    pressure: Thresholds = Thresholds(warn=_WARN["pressure"])

    @model_validator(mode="before")
    @classmethod
    def _keep_defaults(cls, value: Any) -> Any:
        """Who sets only `stop` keeps the default of `warn`, as far as it is not above it."""
        if not isinstance(value, Mapping):
            return value
        kept = dict(value)
        for name, warn in _WARN.items():
            given = value.get(name)
            if isinstance(given, Mapping) and "warn" not in given:
                stop = given.get("stop")
                kept[name] = {"warn": min(warn, stop) if isinstance(stop, int | float) else warn, **given}
        return kept


class NightlySettings(_Strict):
    """What a night does besides curating.

    Attributes:
        policy: `append` leaves every earlier verdict as it is and decides about new samples only; `rebalance` draws the
            quotas of prunes anew over everything. Thresholds, centroids and what is whose duplicate stay either way.
        changed: what to do about a shard that is no longer what the last snapshot read: `stop`, leave its samples out
            (`leave_out`), or take it as a new one (`as_new`).
        vanished: what to do about a shard that is gone: `stop`, or leave its samples out.
        drift: when to warn and when to stop.
    """

    policy: Policy = "append"
    changed: Literal["stop", "leave_out", "as_new"] = "stop"
    vanished: Literal["stop", "leave_out"] = "stop"
    drift: DriftSettings = DriftSettings()


class Nightly(Curation):
    """One job, run each night: a curation and what to do from one night to the next.

    Attributes:
        nightly: the latter.
    """

    nightly: NightlySettings = NightlySettings()

    @model_validator(mode="after")
    def _check_nights(self) -> Self:
        if self.given is not None:
            raise KeyProblem(("given",), "must be left out of a nightly config: it goes by its own snapshots")
        return self
