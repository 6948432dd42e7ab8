// The page: statistics of the admin port go into the tiles and lists, events from the port for clients into the log.

import { PERIOD_MS as STATS_MS, Stats } from "./stats.js";
import { Log, tally } from "./log.js";
import { PERIOD_MS as CONNECTIONS_MS, Connections } from "./connections.js";
import { Subscriber } from "./subscriber.js";
import { clock, count, KINDS, verdictText } from "./words.js";

const ANSWER_MS = 5000;
const $ = (id) => document.getElementById(id);
let again = false; // whether the next events may be repeated
let link = { phase: "connecting", text: "Connecting", retryAt: null };

const log = new Log($("log"), {
  changed: (state) => {
    $("count").textContent = tally(state);
    $("empty").hidden = state.shown > 0;
    $("empty").textContent = state.received === 0 ? "Waiting for the first event." : "No received event passes the filter.";
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

/** Return the answer of the admin port as JSON. Throws if it does not answer, or answers with an error. */
async function get(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(ANSWER_MS), cache: "no-store" });
  if (!answer.ok) {
    throw new Error(`the admin port answered ${answer.status}`);
  }
  return answer.json();
}

/** Call `work` repeatedly while the page is visible, and report if it fails twice in a row. */
function poll(ms, work) {
  let failures = 0;
  const turn = async () => {
    if (document.visibilityState === "visible") {
      try {
        await work();
        failures = 0;
      } catch {
        failures += 1;
        if (failures === 2) {
          $("trouble").textContent = `The admin port has not answered since ${clock(new Date()).slice(0, 8)}; the statistics are out of date.`;
          $("trouble").hidden = false;
        }
      }
    }
    setTimeout(turn, ms);
  };
  turn();
}

poll(STATS_MS, async () => {
  const found = await get("api/figures");
  stats.show(found);
  $("trouble").hidden = true;
  $("url").textContent = found.clients.url ?? "";
  if (found.clients.url !== null) {
    subscriber.aim(found.clients.url, found.clients.token);
  }
});
poll(CONNECTIONS_MS, () => connections.refresh());

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
  }
  if (asks && link.text !== "A token is required") {
    $("token-reason").textContent = `${link.text}. Another one is also stored only in the memory of this page.`;
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
  if (effectiveDirective === "connect-src") {
    $("trouble").textContent = "The server now listens at another address; reload this page.";
    $("trouble").hidden = false;
  }
});
