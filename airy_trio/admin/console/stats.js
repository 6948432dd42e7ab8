// The tiles: statistics of the admin port once a second, as rates and quantiles of the difference. A part of the server
// that is not ready is reported in the tile whose figures it affects.

import { $, element } from "./dom.js";
import { Chart, quantile } from "./charts.js";
import { bandwidth, clock, count, counted, duration, rate } from "./words.js";

export const PERIOD_MS = 1000;
const WINDOW = 10; // samples for the quantiles: one second of a quiet server has too few observations
const TILES = { listener: "connected", store: "deliveries" }; // all other parts affect the recording: the tile "lag"
const inWords = (seconds) => duration(seconds).join(" ");

export class Stats {
  #past = []; // samples of the last WINDOW seconds, oldest first
  #stoppedAt = null; // when this page detected that the server stopped recording; null if it records or never did
  #charts = {
    deliveries: chart("deliveries-chart", ["rate"], 1, "Deliveries a second", (value) => `${rate(value)}/s`),
    latency: chart("latency-chart", ["p50", "p99"], 0.005, "From the commit to the socket", inWords),
    lag: chart("lag-chart", ["lag"], 0.1, "Recorder lag", inWords),
    connected: chart("connected-chart", ["open"], 4, "Connections", (value) => counted(value, "connection")),
  };

  /** Show an answer of /api/figures. */
  show(found) {
    const now = { at: performance.now(), ...found };
    const before = this.#past.at(-1);
    if (before !== undefined && (before.node.process !== now.node.process || now.deliveries < before.deliveries)) {
      this.#past = []; // the server was restarted, so its counts begin at 0
      this.#stoppedAt = null;
    }
    this.#past.push(now);
    if (this.#past.length > WINDOW + 1) {
      this.#past.shift();
    }
    this.#showRates(now);
    this.#showLatency(now);
    this.#showLag(now);
    this.#showConnections(now);
    showFaults(now);
  }

  #showRates(now) {
    const before = this.#past.at(-2);
    if (before === undefined) {
      return;
    }
    const seconds = (now.at - before.at) / 1000;
    const perSecond = (name) => (now[name] - before[name]) / seconds;
    const deliveries = perSecond("deliveries");
    $("deliveries").textContent = rate(deliveries);
    $("deliveries-detail").textContent = `${rate(perSecond("events"))} events/s, ${bandwidth(perSecond("bytes"))}`;
    this.#charts.deliveries.add(now.at, [deliveries]);
  }

  #showLatency(now) {
    const oldest = this.#past[0].latency.counts;
    const counts = now.latency.counts.map((held, bucket) => held - oldest[bucket]);
    const [half, most] = [0.5, 0.99].map((share) => quantile(share, counts, now.latency.bounds_s));
    const [text, unit] = half === null ? ["–", ""] : duration(half);
    $("latency").textContent = text;
    $("latency-unit").textContent = unit;
    $("latency-detail").textContent = most === null ? "no deliveries in the last 10 s" : `p99 ${inWords(most)}`;
    this.#charts.latency.add(now.at, [half, most]);
  }

  #showLag({ at, lag_s, recording, parts }) {
    const [text, unit] = duration(lag_s);
    $("lag").textContent = text;
    $("lag-unit").textContent = unit;
    if (recording) {
      this.#stoppedAt = null;
    } else if (this.#past.at(-2)?.recording) {
      this.#stoppedAt = new Date();
    }
    const stopped = this.#stoppedAt !== null;
    const reason = parts.feed.well ? ": the lease was lost or offered" : ""; // otherwise the reason is among the faults
    const since = stopped ? `stopped recording at ${clock(this.#stoppedAt).slice(0, 8)}${reason}` : "this server does not record";
    $("lag-detail").textContent = recording ? "this server records" : since;
    $("lag-detail").classList.toggle("warning", stopped);
    this.#charts.lag.add(at, [lag_s]);
  }

  #showConnections({ at, connections, behind, subscriptions }) {
    $("connected").textContent = count(connections);
    const late = behind === 0 ? "no clients behind" : `${counted(behind, "client")} behind`;
    $("connected-detail").textContent = `${counted(subscriptions, "subscription")}, ${late}`;
    $("connected-detail").classList.toggle("bad", behind > 0);
    this.#charts.connected.add(at, [connections]);
  }
}

function chart(id, lines, least, label, format) {
  return new Chart($(id), { lines, least, label, format });
}

function showFaults({ parts, row_faults }) {
  const faults = { connected: [], deliveries: [], lag: [] };
  for (const [name, { well, reason }] of Object.entries(parts)) {
    if (!well) {
      faults[TILES[name] ?? "lag"].push(`${name}: ${reason}`);
    }
  }
  if (row_faults > 0) {
    faults.lag.push(`${counted(row_faults, "row fault")} since the server started; its log names each row`);
  }
  for (const [tile, found] of Object.entries(faults)) {
    $(`${tile}-faults`).replaceChildren(...found.map(fault));
    $(`${tile}-faults`).hidden = found.length === 0;
  }
}

function fault(words) {
  const made = element("li", "", words);
  made.title = words; // the visible text may be cut
  return made;
}
