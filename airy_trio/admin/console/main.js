// The page: statistics of the admin port go into the tiles and lists, events from the port for clients into the log.

import { $ } from "./dom.js";
import { PERIOD_MS as STATS_MS, Stats } from "./stats.js";
import { showParts, showServer, showState } from "./server.js";
import { Log, tally } from "./log.js";
import { PERIOD_MS as CONNECTIONS_MS, Connections } from "./connections.js";
import { Subscriber } from "./subscriber.js";
import { clock, count, KINDS, verdictText } from "./words.js";

const ANSWER_MS = 5000;
const OK = 200;
const UNAVAILABLE = 503;
let again = false; // whether the log may already have the next events
let moved = false; // whether the policy of this page forbids the current address of the port for clients
let link = { phase: "connecting", text: "Connecting", retryAt: null };

const log = new Log($("log"), {
  changed: (state) => {
    $("count").textContent = tally(state);
    $("empty").hidden = state.shown > 0;
    $("empty").textContent = state.received === 0 ? "Waiting for the first event." : "No event matches the filter.";
    const paused = $("pause").getAttribute("aria-pressed") === "true";
    $("pause").textContent = !paused ? "Pause" : state.waiting === 0 ? "Resume" : `Resume (${count(state.waiting)} new)`;
  },
  narrow: (what, id) => {
    $(what).value = id;
    narrow();
    $("events-heading").focus();
  },
  suggest: (what, ids) => {
    const options = ids.map((id) => {
      const option = document.createElement("option");
      option.value = id;
      return option;
    });
    $(`${what}s`).replaceChildren(...options);
  },
});

const subscriber = new Subscriber({
  state: (state) => {
    if (link.phase === "live" && state.phase !== "live" && state.phase !== "connecting") {
      log.note(`${state.text}.`, false);
    }
    link = state;
    showLink();
  },
  event: (id, body, completesState) => {
    log.add(id, body, again);
    if (completesState) {
      log.note("The current state is complete; only changes follow.", false);
    }
  },
  verdict: (verdict, position, after, missing) => {
    again = verdict !== "resumed";
    if (missing.length > 0) {
      log.note(`The current state is not complete for ${missing.join(", ")}; see airy-trio backfill.`, true);
    }
    const text = verdictText(verdict, after);
    if (text !== null) {
      log.note(...text);
    }
    $("verdict").textContent = text?.[0] ?? `Subscribed to ${destination()} from ${position}.`;
    $("verdict").classList.toggle("bad", text?.[1] ?? false);
  },
});

const stats = new Stats();
const connections = new Connections(get, () => subscriber.session);

/** Fetch a page of the admin port; return its status and body. Throws if no JSON arrives in time. */
async function fetched(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(ANSWER_MS), cache: "no-store" });
  return { status: answer.status, body: await answer.json() };
}

/** Fetch a page of the admin port; return its body. Throws if no answer arrives, or if the answer is an error. */
async function get(path) {
  const { status, body } = await fetched(path);
  if (status !== OK) {
    throw new Error(`the admin port answered ${status}`);
  }
  return body;
}

/** Call `work` repeatedly while the page is visible. When it has failed twice in a row, call `failed` with the time. */
function poll(ms, work, failed) {
  let failures = 0;
  let since = "";
  const turn = async () => {
    if (document.visibilityState === "visible") {
      try {
        await work();
        failures = 0;
      } catch {
        failures += 1;
        since = failures === 1 ? clock(new Date()).slice(0, 8) : since;
        if (failures === 2) {
          failed(since);
        }
      }
    }
    setTimeout(turn, ms);
  };
  turn();
}

function showTrouble(words) {
  $("trouble").textContent = words;
  $("trouble").hidden = words === "";
}

async function refreshStats() {
  const { status, body } = await fetched("api/figures");
  if (status === UNAVAILABLE) { // the server is starting, and only its probes are answered
    const { ready, ...parts } = (await fetched("readyz")).body;
    showState("starting", ready);
    showParts(parts, null);
    showTrouble(`The server is starting, so the statistics are out of date. ${parts.start?.reason ?? ""}`.trim());
    return;
  }
  if (status !== OK) {
    throw new Error(`the admin port answered ${status}`);
  }
  showServer(body);
  showState(body.ready ? "ready" : "not ready", body.ready);
  showParts(body.parts, body.head);
  stats.show(body);
  showTrouble(moved ? "The server now listens at another address; reload this page." : refusal(body.clients.allowed_origins));
  $("url").textContent = body.clients.url ?? "";
  if (body.clients.url !== null) {
    subscriber.aim(body.clients.url, body.clients.token);
  }
}

/**
 * Return a line for the user if the port for clients refuses this page, "" otherwise. A browser does not report why a
 * WebSocket failed, so this compares the page's origin with the setting.
 */
function refusal(origins) {
  const listed = origins.some((one) => one === "*" || (URL.canParse(one) && new URL(one).origin === location.origin));
  if (link.phase === "live" || origins.length === 0 || listed) {
    return "";
  }
  return `No events here: the setting [listener] allowed_origins does not list this page, ${location.origin}.`;
}

async function refreshConnections() {
  await connections.refresh();
  $("clients-fault").hidden = true;
}

poll(STATS_MS, refreshStats, (since) => {
  showState("no answer", false);
  showTrouble(`The admin port has not answered since ${since}; the statistics are out of date.`);
});
poll(CONNECTIONS_MS, refreshConnections, (since) => {
  $("clients-fault").textContent = `This list has been out of date since ${since}.`;
  $("clients-fault").hidden = false;
});

function showLink() {
  $("link").dataset.phase = link.phase;
  const left = link.retryAt === null ? 0 : Math.ceil((link.retryAt - performance.now()) / 1000);
  $("link-text").textContent = link.phase === "waiting" ? `${link.text}, reconnecting` : link.text;
  $("link").title = left > 0 ? `next attempt in ${left} s` : "";
  $("retry").hidden = link.phase !== "waiting" && link.phase !== "refused";
  const asks = link.phase === "token";
  if (asks && $("token-form").hidden) {
    $("token-form").hidden = false;
    $("token").focus();
  }
  if (link.phase === "live") {
    $("token-form").hidden = true;
    moved = false;
  }
  if (asks && link.text !== "A token is required") {
    $("token-reason").textContent = `${link.text}. A new token is also stored only in the memory of this page.`;
  }
}

/** Return the narrowest destination of the filter. */
function destination() {
  const [channel, conversation] = ["channel", "conversation"].map((id) => $(id).value.trim());
  if (conversation !== "") {
    return `/events/conversation/${encodeURIComponent(conversation)}`;
  }
  return channel === "" ? "/events" : `/events/channel/${encodeURIComponent(channel)}`;
}

for (const kind of KINDS) {
  const [label, box, name] = ["label", "input", "span"].map((tag) => document.createElement(tag));
  Object.assign(box, { type: "checkbox", name: "type", value: kind, defaultChecked: true });
  name.textContent = kind;
  label.dataset.kind = kind;
  label.append(box, name);
  $("types").append(label);
}

const replay = () => ($("current").checked ? "current" : "recent");
let subscribed = `${destination()} ${replay()}`;

function narrow() {
  const wanted = `${destination()} ${replay()}`;
  if (wanted !== subscribed) {
    subscribed = wanted;
    log.clear();
    subscriber.subscribe(destination(), replay());
  }
  const kinds = new Set([...document.querySelectorAll("[name=type]:checked")].map(({ value }) => value));
  const channel = $("channel").value.trim();
  log.filter(({ type, payload }) => {
    const elsewhere = channel !== "" && payload.channel_id !== undefined && payload.channel_id !== channel;
    return kinds.has(type.split(".")[0]) && !elsewhere;
  });
}

$("filters").addEventListener("submit", (event) => {
  event.preventDefault();
  narrow();
});
$("filters").addEventListener("change", narrow);
$("filters").addEventListener("reset", () => setTimeout(narrow)); // the fields are cleared after this event
$("pause").addEventListener("click", () => {
  const paused = $("pause").getAttribute("aria-pressed") !== "true";
  $("pause").setAttribute("aria-pressed", String(paused));
  log.pause(paused);
});
$("retry").addEventListener("click", () => subscriber.connect());
$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const token = $("token").value;
  $("token").value = "";
  subscriber.authenticate(token);
});
addEventListener("online", () => {
  if (link.phase === "waiting") {
    subscriber.connect();
  }
});
document.addEventListener("securitypolicyviolation", ({ effectiveDirective }) => {
  moved ||= effectiveDirective === "connect-src";
});
