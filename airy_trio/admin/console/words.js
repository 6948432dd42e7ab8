// Numbers, durations, events and disconnect reasons as text for people.

/** The kinds of objects. The type of an event begins with its kind. Each kind has a colour in `console.css`. */
export const KINDS = ["message", "metadata", "channel", "tag"];

const TEXT_MAX = 240;
const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

export const count = (number) => whole.format(number);

/** "1 event", "2 events". */
export const counted = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

/** A rate: three significant digits, or a whole number from 100 on. */
export const rate = (number) => (number >= 100 ? whole.format(Math.round(number)) : short.format(number));

/** Seconds as [text, unit]. */
export function duration(seconds) {
  if (seconds < 1) {
    return [short.format(seconds * 1000), "ms"];
  }
  return seconds < 120 ? [short.format(seconds), "s"] : [short.format(seconds / 60), "min"];
}

/** Bytes a second. */
export function bandwidth(bytes) {
  if (bytes < 1000) {
    return `${whole.format(Math.round(bytes))} B/s`;
  }
  return bytes < 1e6 ? `${short.format(bytes / 1000)} kB/s` : `${short.format(bytes / 1e6)} MB/s`;
}

/** A duration in its largest unit. */
export function age(seconds) {
  const units = [["d", 86400], ["h", 3600], ["min", 60]];
  const [unit, length] = units.find(([, one]) => seconds >= one) ?? ["s", 1];
  return `${Math.floor(seconds / length)} ${unit}`;
}

/** The time of day with milliseconds, as a server logs it. */
export function clock(date) {
  return `${date.toTimeString().slice(0, 8)}.${String(date.getMilliseconds()).padStart(3, "0")}`;
}

/** Summarise an event on one line: {kind, sender, text, state}. */
export function summary({ type, payload }) {
  const [kind] = type.split(".");
  switch (type) {
    case "message.updated": {
      const { message } = payload;
      const text = clipped(content(message.content));
      return { kind, sender: message.from_contact ? "contact" : "agent", text, state: message.delivery_state };
    }
    case "message.deleted":
      return { kind, sender: "", text: `${payload.message.id} of ${payload.conversation_id}`, state: "deleted" };
    case "metadata.updated":
      return { kind, sender: payload.subject, text: clipped(pairs(payload.metadata)), state: "" };
    case "channel.updated":
      return { kind, sender: payload.source, text: payload.id, state: payload.connected ? "connected" : "disconnected" };
    case "tag.updated":
      return { kind, sender: "", text: payload.name, state: payload.color.replace(/^tag-/, "") };
    case "tag.deleted":
      return { kind, sender: "", text: payload.id, state: "deleted" };
    default:
      return { kind, sender: "", text: clipped(JSON.stringify(payload)), state: "" };
  }
}

/** Return the channel and the conversation that an event names: {channel, conversation}, each null if not named. */
export function belongs({ type, payload }) {
  if (type.startsWith("message.")) {
    return { channel: payload.channel_id, conversation: payload.conversation_id };
  }
  if (type === "channel.updated") {
    return { channel: payload.id, conversation: null };
  }
  const about = type === "metadata.updated" ? payload.subject : "";
  return {
    channel: about === "channel" ? payload.identifier : null,
    conversation: about === "conversation" ? payload.identifier : null,
  };
}

/** Describe why a connection ended: by the token of the ERROR frame, or by its text if the token is unknown. */
export function disconnectReason(token, prose) {
  const known = {
    "401-unauthorized": "The token was not accepted",
    "401-token-expired": "The token has expired",
    "403-destination": "This token does not allow this destination; enter a channel or a conversation",
    "404-unknown-destination": "There is no such destination",
    "408-heart-beat-missed": "The server received nothing from this page for too long",
    "410-position-expired": "This page was too slow: the events that it missed are no longer stored",
    "503-event-store-unavailable": "The server cannot read the event store",
    "503-shutting-down": "The server is shutting down",
  };
  return known[token] ?? (prose.trim().replace(/\.$/, "") || token);
}

/** Explain the verdict on a position: [text, whether events may be missing]; null if there is nothing to explain. */
export function verdictText(verdict, after) {
  switch (verdict) {
    case "resumed":
      return [`Resumed after ${after}: no events are missing or repeated.`, false];
    case "reset-expired":
      return [`Disconnected for too long: events after ${after} are no longer stored. Showing recent events.`, true];
    case "reset-epoch":
      return [`The event log was reset: ${after} is from the previous one. Showing recent events.`, true];
    default:
      return null;
  }
}

function content(value) {
  if (typeof value === "string") {
    return value;
  }
  return typeof value?.text === "string" ? value.text : JSON.stringify(value);
}

function pairs(metadata) {
  const found = [];
  const walk = (value, path) => {
    if (found.length > 20) {
      return;
    }
    if (value !== null && typeof value === "object" && !Array.isArray(value) && Object.keys(value).length > 0) {
      for (const [name, inner] of Object.entries(value)) {
        walk(inner, path === "" ? name : `${path}.${name}`);
      }
    } else {
      found.push(path === "" ? "(empty)" : `${path} ${value === "" ? "✓" : typeof value === "string" ? value : JSON.stringify(value)}`);
    }
  };
  walk(metadata, "");
  return found.join("  ·  ");
}

function clipped(text) {
  const line = text.replace(/\s+/g, " ");
  return line.length > TEXT_MAX ? `${line.slice(0, TEXT_MAX - 1)}…` : line;
}
