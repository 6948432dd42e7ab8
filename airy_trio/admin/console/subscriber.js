// One subscription that survives lost connections: it connects, subscribes, resumes after the last event and reports its
// state in plain words.

import { decode, encode } from "./stomp.js";
import { disconnectReason } from "./words.js";

const HEARTBEAT_MS = 30000;
const PATIENCE = 2.5; // heart-beat intervals, as for the server: timers of hidden pages are slow
const CONNECT_MS = 10000;
const DELAY_FIRST_MS = 400;
const DELAY_MAX_MS = 5000;
const FINAL_CODES = new Set([4403, 4404, 4409, 1002, 1009]); // reconnecting would fail again

export class Subscriber {
  #on;
  #url = null;
  #token = null;
  #destination = "/events";
  #replay = "recent";
  #lastId = null;
  #socket = null;
  #number = 0;
  #failures = 0;
  #timers = new Set();
  #error = null;
  #session = null;

  /** `on`: `state({phase, text, retryAt})`, `event(id, body, completesState)`, `verdict(verdict, position, after, missing)`. */
  constructor(on) {
    this.#on = on;
  }

  /** The session id of this connection; null if there is none. */
  get session() {
    return this.#session;
  }

  /** Use this URL from the next connection on. The first call connects, unless `needsToken` and there is no token. */
  aim(url, needsToken) {
    const first = this.#url === null;
    this.#url = url;
    if (first && needsToken && this.#token === null) {
      this.#report("token", "A token is required");
    } else if (first) {
      this.connect();
    }
  }

  /** Connect with this token, which only this object stores. */
  authenticate(token) {
    this.#token = token;
    this.connect();
  }

  /** Switch to another destination. `replay`: "recent" for its recent events first, "current" for the current state. */
  subscribe(destination, replay) {
    this.#destination = destination;
    this.#replay = replay;
    this.#lastId = null;
    if (this.#session === null) {
      this.connect();
      return;
    }
    this.#send("UNSUBSCRIBE", { id: String(this.#number) });
    this.#begin();
  }

  /** Connect now instead of waiting. */
  connect() {
    if (this.#url === null) {
      return;
    }
    this.#drop();
    this.#error = null;
    this.#report("connecting", "Connecting");
    let socket;
    try {
      socket = new WebSocket(this.#url, ["v12.stomp"]);
    } catch {
      this.#report("refused", `This browser cannot connect to ${this.#url}`);
      return;
    }
    this.#socket = socket;
    socket.onopen = () => this.#greet();
    socket.onmessage = ({ data }) => this.#receive(socket, data);
    socket.onclose = ({ code }) => this.#closed(socket, code);
    this.#after(CONNECT_MS, () => socket.close());
  }

  #greet() {
    const headers = { "accept-version": "1.2", "heart-beat": `${HEARTBEAT_MS},${HEARTBEAT_MS}` };
    if (this.#token !== null) {
      headers.Authorization = `Bearer ${this.#token}`;
    }
    this.#send("CONNECT", headers);
  }

  #receive(socket, data) {
    if (socket !== this.#socket) {
      return;
    }
    this.#receivedAt = performance.now();
    const frame = decode(data);
    switch (frame?.command) {
      case "CONNECTED":
        this.#connected(frame.headers);
        break;
      case "RECEIPT":
        this.#started(frame.headers);
        break;
      case "MESSAGE":
        if (frame.headers.get("subscription") === String(this.#number)) {
          this.#lastId = frame.headers.get("message-id");
          this.#on.event(this.#lastId, frame.body, frame.headers.get("state") === "complete");
        }
        break;
      case "ERROR":
        this.#error = { token: frame.headers.get("message") ?? "", prose: frame.body };
        break;
    }
  }

  #receivedAt = 0;

  #connected(headers) {
    this.#clear();
    this.#session = headers.get("session");
    const [theirs, wanted] = headers.get("heart-beat").split(",").map(Number);
    if (wanted > 0) {
      this.#every(Math.max(wanted, HEARTBEAT_MS), () => this.#socket.send("\n"));
    }
    if (theirs > 0) {
      const interval = Math.max(theirs, HEARTBEAT_MS);
      this.#every(interval / 2, () => {
        if (performance.now() - this.#receivedAt > PATIENCE * interval) {
          const silent = this.#socket;
          this.#closed(silent, 1006); // do not wait for the close event, which needs an answer from the silent peer
          silent.close();
        }
      });
    }
    this.#begin();
  }

  #begin() {
    this.#number += 1;
    const id = String(this.#number);
    const headers = { id, destination: this.#destination, receipt: id, replay: this.#replay };
    if (this.#lastId !== null) {
      headers["last-event-id"] = this.#lastId;
    }
    this.#send("SUBSCRIBE", headers);
  }

  #started(headers) {
    if (headers.get("receipt-id") !== String(this.#number)) {
      return;
    }
    this.#failures = 0;
    this.#report("live", "Live");
    const missing = headers.get("state-missing")?.split(",") ?? [];
    const [verdict, position, after] = [headers.get("resume"), headers.get("position"), this.#lastId];
    if (verdict !== "resumed") {
      this.#lastId = position; // until the first event; after a reset the page has dropped those up to the old position
    }
    this.#on.verdict(verdict, position, after, missing);
  }

  #closed(socket, code) {
    if (socket !== this.#socket) {
      return;
    }
    this.#drop();
    const { token, prose } = this.#error ?? { token: "", prose: "" };
    if (token.startsWith("401") || code === 4401) {
      this.#token = null;
      this.#report("token", disconnectReason(token || "401", prose));
    } else if (FINAL_CODES.has(code) && token !== "") {
      this.#report("refused", disconnectReason(token, prose));
    } else {
      const spread = 0.75 + Math.random() / 2;
      const delay = Math.min(DELAY_MAX_MS, DELAY_FIRST_MS * 2 ** this.#failures) * spread;
      this.#failures += 1;
      this.#report("waiting", token === "" ? "Not connected" : disconnectReason(token, prose), performance.now() + delay);
      this.#after(delay, () => this.connect());
    }
  }

  #drop() {
    this.#clear();
    const socket = this.#socket;
    this.#socket = null;
    this.#session = null;
    socket?.close();
  }

  #send(command, headers) {
    this.#socket.send(encode(command, headers));
  }

  #report(phase, text, retryAt = null) {
    this.#on.state({ phase, text, retryAt });
  }

  #after(ms, work) {
    this.#timers.add(setTimeout(work, ms));
  }

  #every(ms, work) {
    this.#timers.add(setInterval(work, ms));
  }

  #clear() {
    for (const timer of this.#timers) {
      clearTimeout(timer); // also clears intervals (HTML, "Timers")
    }
    this.#timers.clear();
  }
}
