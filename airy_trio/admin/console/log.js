// The list of events: newest first, bounded, drawn at most once per frame. All parts of a payload are set as text, so
// they cannot become markup.

import { element } from "./dom.js";
import { belongs, clock, count, summary } from "./words.js";

const KEPT_MAX = 2000;
const ROWS_MAX = 250;
const ROWS_PER_FRAME = 50;
const SUGGESTED_MAX = 50;
const STATES = new Set(["pending", "delivered", "failed", "connected", "disconnected", "deleted"]);

export class Log {
  #kept = []; // oldest first: events, and notes between them
  #waiting = [];
  #asked = false;
  #paused = false;
  #missedWhilePaused = 0;
  #received = 0;
  #shows = () => true;
  #rows;
  #on;
  #suggested = { channel: new Map(), conversation: new Map() };
  #newlySuggested = new Set(); // which of the two has changed since the last frame
  #seen = new Set();

  /** `rows`: the list element. `on`: `changed({received, shown, kept, waiting})`, `narrow(what, id)`, `suggest(what, ids)`. */
  constructor(rows, on) {
    this.#rows = rows;
    this.#on = on;
    rows.addEventListener("toggle", ({ target }) => this.#toggled(target), true);
    rows.addEventListener("keydown", (press) => this.#pressed(press));
  }

  /** Add an event. `again`: skip it if it is already in the list. */
  add(id, body, again) {
    if (again && this.#seen.has(id)) {
      return;
    }
    this.#received += 1;
    const event = JSON.parse(body);
    this.#suggest(event);
    this.#keep({ id, event, at: new Date(), note: null });
  }

  /** Add a note between the events, such as a lost connection. `bad`: events may be missing. */
  note(text, bad) {
    this.#keep({ id: null, event: null, at: new Date(), note: { text, bad } });
  }

  /** Remove all entries. */
  clear() {
    this.#kept = [];
    this.#seen.clear();
    this.filter(this.#shows);
  }

  /** Show only the events for which `shows` returns true. */
  filter(shows) {
    this.#shows = shows;
    this.#rows.replaceChildren();
    this.#waiting = this.#kept.filter((entry) => this.#isShown(entry)).slice(-ROWS_MAX);
    this.#missedWhilePaused = 0;
    this.#ask();
  }

  /** Stop drawing, or continue with all events that have arrived meanwhile. */
  pause(paused) {
    this.#paused = paused;
    this.#missedWhilePaused = 0;
    this.#ask();
  }

  #keep(entry) {
    this.#kept.push(entry);
    if (entry.id !== null) {
      this.#seen.add(entry.id);
    }
    if (this.#kept.length > 2 * KEPT_MAX) {
      this.#kept = this.#kept.slice(-KEPT_MAX);
      this.#seen = new Set(this.#kept.map(({ id }) => id));
    }
    if (this.#isShown(entry)) {
      this.#waiting.push(entry);
      this.#missedWhilePaused += this.#paused ? 1 : 0;
      if (this.#waiting.length > 2 * ROWS_MAX) {
        this.#waiting = this.#waiting.slice(-ROWS_MAX);
      }
    }
    this.#ask();
  }

  #isShown({ event }) {
    return event === null || this.#shows(event);
  }

  #ask() {
    if (!this.#asked) {
      this.#asked = true;
      requestAnimationFrame(() => this.#draw());
    }
  }

  #draw() {
    this.#asked = false;
    for (const what of this.#newlySuggested) {
      this.#on.suggest(what, [...this.#suggested[what].keys()].reverse());
    }
    this.#newlySuggested.clear();
    if (!this.#paused && this.#waiting.length > 0) {
      const batch = this.#waiting.slice(-ROWS_MAX).slice(0, ROWS_PER_FRAME);
      this.#waiting = this.#waiting.slice(-ROWS_MAX).slice(ROWS_PER_FRAME);
      this.#rows.prepend(...batch.reverse().map(row));
      this.#trim();
      if (this.#waiting.length > 0) {
        this.#ask();
      }
    }
    const shown = this.#rows.childElementCount;
    const kept = Math.min(this.#kept.length, KEPT_MAX);
    this.#on.changed({ received: this.#received, shown, kept, waiting: this.#paused ? this.#missedWhilePaused : 0 });
  }

  #trim() {
    while (this.#rows.childElementCount > ROWS_MAX) {
      const last = this.#rows.lastElementChild;
      if (last.contains(document.activeElement)) {
        return; // removing this row would remove the keyboard focus
      }
      last.remove();
    }
  }

  #suggest(event) {
    for (const [what, id] of Object.entries(belongs(event))) {
      const known = this.#suggested[what];
      if (id === null || known.has(id)) {
        continue;
      }
      known.set(id, true);
      if (known.size > SUGGESTED_MAX) {
        known.delete(known.keys().next().value);
      }
      this.#newlySuggested.add(what);
    }
  }

  #toggled(details) {
    const { entry } = details.parentElement;
    if (!details.open || details.childElementCount > 1) {
      return;
    }
    const body = element("div", "body");
    body.append(this.#actions(entry), element("pre", "", JSON.stringify(entry.event, null, 2)));
    details.append(body);
  }

  #actions({ id, event }) {
    const line = element("p", "actions");
    line.append(element("span", "position", id));
    for (const [what, named] of Object.entries(belongs(event))) {
      if (named !== null) {
        const button = element("button", "", `Only this ${what}`);
        button.type = "button";
        button.addEventListener("click", () => this.#on.narrow(what, named));
        line.append(button);
      }
    }
    return line;
  }

  #pressed(press) {
    const here = press.target.closest("li");
    const steps = {
      ArrowDown: (li) => li.nextElementSibling,
      ArrowUp: (li) => li.previousElementSibling,
      Home: () => this.#rows.firstElementChild,
      End: () => this.#rows.lastElementChild,
    };
    if (press.target.tagName !== "SUMMARY" || !(press.key in steps)) {
      return;
    }
    press.preventDefault();
    let next = steps[press.key](here);
    while (next !== null && next.querySelector("summary") === null) {
      next = press.key === "ArrowUp" || press.key === "End" ? next.previousElementSibling : next.nextElementSibling;
    }
    next?.querySelector("summary").focus();
  }
}

function row(entry) {
  const item = document.createElement("li");
  item.entry = entry;
  if (entry.note !== null) {
    item.className = entry.note.bad ? "status bad" : "status";
    item.append(element("time", "", clock(entry.at)), element("span", "", entry.note.text));
    return item;
  }
  const { kind, sender, text, state } = summary(entry.event);
  item.dataset.kind = kind;
  item.dataset.position = entry.id;
  const details = document.createElement("details");
  const head = document.createElement("summary");
  head.append(element("time", "", clock(entry.at)), element("span", "kind", kind));
  const words = element("span", "words");
  if (sender !== "") {
    words.append(element("span", "sender", sender), " ");
  }
  words.append(element("span", "what", text));
  const about = belongs(entry.event).conversation ?? "";
  head.append(words, element("span", "about", about), element("span", STATES.has(state) ? `state ${state}` : "state", state));
  details.append(head);
  item.append(details);
  return item;
}

/** "1,204 received, 250 of 2,000 shown". */
export function tally({ received, shown, kept }) {
  return received === 0 ? "" : `${count(received)} received, ${count(shown)} of ${count(kept)} shown`;
}
