"""The metrics of one server for Prometheus, read from the statistics of its long-lived objects at each scrape.

Each label has a closed list of values (event types, disconnect reasons, limits, statuses, tokens, parts), and each
value has a series from the start.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Final

import trio
from attrs import frozen
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from airy_trio import __version__
from airy_trio.admin.readiness import Condition
from airy_trio.log.event_log import EventLog
from airy_trio.log.recorder import Recorder, Retention
from airy_trio.log.tail import LATENCY_BUCKETS_S, Latencies
from airy_trio.sessions.registry import Sessions

PREFIX: Final = "airy_trio_"


@frozen(kw_only=True)
class Sources:
    """The objects with statistics."""

    sessions: Sessions
    log: EventLog
    recorder: Recorder
    retention: Retention
    conditions: Callable[[], Mapping[str, Condition]]


def registry(sources: Sources) -> CollectorRegistry:
    """Make a registry with the metrics of the server and of the process (memory, descriptors, CPU time)."""
    made = CollectorRegistry(auto_describe=False)
    made.register(_ServerCollector(sources))
    ProcessCollector(registry=made)
    return made


@frozen(eq=False)
class _ServerCollector(Collector):
    _sources: Sources

    def collect(self) -> Iterable[Metric]:
        yield _gauges("build_info", "The version of the server.", "version", {__version__: 1})
        yield from self._clients()
        yield from self._recording()
        yield from self._store()
        conditions = self._sources.conditions()
        well = {name: int(condition.well) for name, condition in conditions.items()}
        yield _gauges("ready", "Whether each part is ready, as in /readyz.", "part", well)

    def _clients(self) -> Iterator[Metric]:
        sessions = self._sources.sessions
        services, durables, admission = sessions.services, sessions.durables, sessions.admission
        yield _gauge("connections", "Open connections.", len(sessions.clients))
        tasks = trio.lowlevel.current_statistics().tasks_living
        yield _gauge("tasks", "Tasks of the server's event loop, about one for each connection.", tasks)
        yield _gauge("subscriptions", "Subscriptions of all connections.", sessions.subscriptions)
        words = "Subscriptions started, by the header resume of their RECEIPT."
        yield _counters("subscriptions_started", words, "resume", services.started)
        yield _gauge("connections_behind", "Connections with events still to be sent.", sessions.behind)
        yield _gauge("durable_subscriptions", "Durable subscriptions claimed by connections.", durables.claimed)
        words = "Durable subscriptions with acknowledgements not yet stored."
        yield _gauge("durable_subscriptions_deferred", words, durables.unwritten)
        waited = "Client requests that waited in the fair queue behind others."
        yield _counter("client_requests_queued", waited, sessions.fair_queue.waited)
        yield _counter("deliveries", "Events sent, once for each subscription.", services.batches.deliveries)
        yield _counter("delivered_bytes", "Bytes of the messages that carry events.", services.batches.bytes)
        yield _counter("acks_ignored", "Acknowledgements of unknown messages.", services.acks_ignored)
        yield _counter("nacks", "Messages that clients answered with NACK.", services.nacks)
        words = "Ended connections, by disconnect reason."
        yield _counters("disconnects", words, "reason", sessions.disconnects)
        yield _gauge("client_addresses", "Client addresses with open connections.", len(admission.by_address))
        limited = admission.turned_away
        yield _counters("connections_rejected", "Connections rejected because of a limit.", "limit", limited)
        requests = {str(status): count for status, count in services.requests_refused.items()}
        yield _counters("http_requests_refused", "Requests refused in HTTP, by status.", "status", requests)
        refused = sessions.client_faults
        yield _counters("frames_refused", "Connections ended because of a frame, by STOMP error.", "error", refused)
        words = 'From the change in the database to the socket; with capture = "updated_at", from its event in the log.'
        yield _histogram("delivery_seconds", words, services.batches.latencies)

    def _recording(self) -> Iterator[Metric]:
        recorder = self._sources.recorder
        found = recorder.statistics()
        yield _counters("events_recorded", "Events appended by this server.", "type", recorder.events_by_type())
        yield _counter("changes_read", "Rows of the change log that were read.", found["changes"])
        yield _counter("row_faults", "Rows that could not become an event.", found["faults"])
        yield _counter("metadata_value_faults", "Metadata values that did not fit their type.", found["value_faults"])
        changes = {"kept": found["kept"], "ended": found["ended"]}
        words = "Events recorded for the current state, and objects that left it because they ended."
        yield _counters("current_state_updates", words, "outcome", changes)
        yield _gauge("recording", "Whether this server is the recorder.", int(recorder.recording))
        yield _gauge("recorder_lag_seconds", "How long changes have waited to be recorded.", recorder.lag_s)

    def _store(self) -> Iterator[Metric]:
        found, trimmed = self._sources.log.statistics(), self._sources.retention.trimmed
        yield _gauge("log_head_offset", "The newest offset that this server has read.", found["head"])
        lag_s = self._sources.log.follow_lag_s
        yield _gauge("follow_lag_seconds", "How long events in the store have waited to be read by this server.", lag_s)
        yield _gauge("tail_events", "Events held in memory.", found["events"])
        yield _gauge("tail_bytes", "Bytes of the bodies held in memory.", found["bytes"])
        yield _gauge("tail_views", "Destinations with a view of the events held in memory.", found["views"])
        yield _counter("events_trimmed", "Events deleted by retention.", trimmed["events"])
        yield _counter("changes_trimmed", "Rows of the change log deleted by retention.", trimmed["changes"])
        whole = {type_: int(is_whole) for type_, is_whole in self._sources.log.state_whole.items()}
        words = "Whether replay:current has all objects of a type of keep_current; if not, run a backfill."
        yield _gauges("current_state_complete", words, "type", whole)
        filling = {type_: int(is_filling) for type_, is_filling in self._sources.log.state_filling.items()}
        words = "Whether a backfill of a kept type has begun and is not complete yet."
        yield _gauges("backfill_running", words, "type", filling)
        behind = self._sources.log.state_behind
        yield _gauge("current_state_behind_events", "Events that are not in the current state yet.", behind)
        pages = self._sources.log.reads.state_pages
        yield _counter("current_state_pages_read", "Pages of the current state read from the event store.", pages)
        yield _histogram("store_append_seconds", "Time of an append to the event store.", self._sources.log.appending)


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}{name}", words, value=value)


def _counter(name: str, words: str, value: float) -> Metric:
    return CounterMetricFamily(f"{PREFIX}{name}", words, value=value)


def _labelled(
    kind: type[GaugeMetricFamily | CounterMetricFamily], name: str, words: str, label: str, values: Mapping[str, int]
) -> Metric:
    family = kind(f"{PREFIX}{name}", words, labels=[label])
    for value, count in sorted(values.items()):
        family.add_metric([value], count)
    return family


_gauges = partial(_labelled, GaugeMetricFamily)
_counters = partial(_labelled, CounterMetricFamily)


def _histogram(name: str, words: str, latencies: Latencies) -> Metric:
    bounds = [*(repr(bound) for bound in LATENCY_BUCKETS_S), "+Inf"]
    buckets = list(zip(bounds, itertools.accumulate(latencies.counts), strict=True))
    return HistogramMetricFamily(f"{PREFIX}{name}", words, buckets=buckets, sum_value=latencies.total_s)
