// One subscription that lives through drops: connects, subscribes, goes on after the last event that it had, and says in
// plain words how that went. Knows nothing of the page.

import { decode, encode } from "./stomp.js";
import { goodbye } from "./words.js";

const HEARTBEAT_MS = 30000;
const PATIENCE = 2.5; // intervals, as the server has it too: timers of hidden pages are slow
const CONNECT_MS = 10000;
const DELAY_FIRST_MS = 400;
const DELAY_MAX_MS = 5000;
const CLOSED_ANYWAY = new Set([4403, 4404, 4409, 1002, 1009]); // coming back would change nothing (wire contract, 6)

export class Subscriber {
  #on;
  #url = null;
  #token = null;
  #destination = "/events";
  #lastId = null;
  #socket = null;
  #number = 0;
  #failures = 0;
  #timers = new Set();
  #error = null;
  #session = null;

  /** `on`: `state({phase, text, retryAt})`, `event(id, body)`, `verdict(verdict, position, after)`. */
  constructor(on) {
    this.#on = on;
  }

  /** The name that the server has for this connection; null where there is none. */
  get session() {
    return this.#session;
  }

  /** Use this URL from the next connection on; the first one given starts. `needsToken`: nothing is tried without. */
  aim(url, needsToken) {
    const first = this.#url === null;
    this.#url = url;
    if (first && needsToken && this.#token === null) {
      this.#say("token", "A token is needed");
    } else if (first) {
      this.connect();
    }
  }

  /** Connect with this token, which only this object holds. */
  authenticate(token) {
    this.#token = token;
    this.connect();
  }

  /** Go on with another destination, from its recent events on. */
  subscribe(destination) {
    this.#destination = destination;
    this.#lastId = null;
    if (this.#session === null) {
      this.connect();
      return;
    }
    this.#send("UNSUBSCRIBE", { id: String(this.#number) });
    this.#begin();
  }

  /** Connect now, whatever was being waited for. */
  connect() {
    if (this.#url === null) {
      return;
    }
    this.#drop();
    this.#error = null;
    this.#say("connecting", "Connecting");
    let socket;
    try {
      socket = new WebSocket(this.#url, ["v12.stomp"]);
    } catch {
      this.#say("refused", `This browser does not connect to ${this.#url}`);
      return;
    }
    this.#socket = socket;
    socket.onopen = () => this.#greet();
    socket.onmessage = ({ data }) => this.#hear(socket, data);
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

  #hear(socket, data) {
    if (socket !== this.#socket) {
      return;
    }
    this.#heard = performance.now();
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
          this.#on.event(this.#lastId, frame.body);
        }
        break;
      case "ERROR":
        this.#error = { token: frame.headers.get("message") ?? "", prose: frame.body };
        break;
    }
  }

  #heard = 0;

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
        if (performance.now() - this.#heard > PATIENCE * interval) {
          const silent = this.#socket;
          this.#closed(silent, 1006); // not its own event: that would wait for the peer, which is silent
          silent.close();
        }
      });
    }
    this.#begin();
  }

  #begin() {
    this.#number += 1;
    const id = String(this.#number);
    const headers = { id, destination: this.#destination, receipt: id };
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
    this.#say("live", "Live");
    this.#on.verdict(headers.get("resume"), headers.get("position"), this.#lastId);
  }

  #closed(socket, code) {
    if (socket !== this.#socket) {
      return;
    }
    this.#drop();
    const { token, prose } = this.#error ?? { token: "", prose: "" };
    if (token.startsWith("401") || code === 4401) {
      this.#token = null;
      this.#say("token", goodbye(token || "401", prose));
    } else if (CLOSED_ANYWAY.has(code) && token !== "") {
      this.#say("refused", goodbye(token, prose));
    } else {
      const spread = 0.75 + Math.random() / 2;
      const delay = Math.min(DELAY_MAX_MS, DELAY_FIRST_MS * 2 ** this.#failures) * spread;
      this.#failures += 1;
      this.#say("waiting", token === "" ? "Not connected" : goodbye(token, prose), performance.now() + delay);
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

  #say(phase, text, retryAt = null) {
    this.#on.state({ phase, text, retryAt });
  }

  #after(ms, what) {
    this.#timers.add(setTimeout(what, ms));
  }

  #every(ms, what) {
    this.#timers.add(setInterval(what, ms));
  }

  #clear() {
    for (const timer of this.#timers) {
      clearTimeout(timer); // which ends intervals too (HTML, "Timers")
    }
    this.#timers.clear();
  }
}
