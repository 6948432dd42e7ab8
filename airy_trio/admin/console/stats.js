// The tiles: statistics of the admin port once a second, as rates and quantiles of the difference.

import { Chart, quantile } from "./charts.js";
import { bandwidth, count, counted, duration, rate } from "./words.js";

export const PERIOD_MS = 1000;
const WINDOW = 10; // samples for the quantiles: one second of a quiet server has too few observations
const $ = (id) => document.getElementById(id);
const inWords = (seconds) => duration(seconds).join(" ");

export class Stats {
  #past = []; // samples of the last WINDOW seconds, oldest first
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
    if (before !== undefined && found.deliveries < before.deliveries) {
      this.#past = []; // the server was restarted, so its counts begin at 0
    }
    this.#past.push(now);
    if (this.#past.length > WINDOW + 1) {
      this.#past.shift();
    }
    this.#showRates(now);
    this.#showLatency(now);
    this.#showLag(now);
    this.#showConnections(now);
    showParts(now);
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

  #showLag({ at, lag_s, recording, row_faults }) {
    const [text, unit] = duration(lag_s);
    $("lag").textContent = text;
    $("lag-unit").textContent = unit;
    const recorder = recording ? "this server records" : "another server records";
    $("lag-detail").textContent = row_faults > 0 ? `${recorder}, ${counted(row_faults, "row fault")}` : recorder;
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

function showParts({ parts, ready, head, version }) {
  $("version").textContent = version;
  $("ready").textContent = ready ? "ready" : "not ready";
  $("ready").classList.toggle("bad", !ready);
  const all = [...Object.entries(parts), ["newest event", { well: true, reason: head }]];
  const rows = all.map(([name, { well, reason }]) => {
    const row = document.createElement("div");
    const [term, words] = [document.createElement("dt"), document.createElement("dd")];
    row.className = well ? "well" : "bad";
    term.textContent = name;
    words.textContent = well ? reason : `not ready: ${reason}`;
    row.append(term, words);
    return row;
  });
  $("parts").replaceChildren(...rows);
}
