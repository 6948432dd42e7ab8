// How things are said: numbers, durations, events and goodbyes, for people.

const TEXT_MAX = 240;
const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

export const count = (number) => whole.format(number);

/** "1 event", "2 events". */
export const counted = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

/** A rate: three digits where it is small, none after the point where it is large. */
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

/** How long ago, coarsely. */
export function age(seconds) {
  const units = [["d", 86400], ["h", 3600], ["min", 60]];
  const [unit, length] = units.find(([, one]) => seconds >= one) ?? ["s", 1];
  return `${Math.floor(seconds / length)} ${unit}`;
}

/** The time of the day with milliseconds, as the log of a server writes it. */
export function clock(date) {
  const two = (number) => String(number).padStart(2, "0");
  const thousandths = String(date.getMilliseconds()).padStart(3, "0");
  return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}.${thousandths}`;
}

/** What an event says, on one line: {kind, who, text, state, gone}. */
export function told({ type, payload }) {
  const [kind, verb] = type.split(".");
  const gone = verb === "deleted";
  switch (type) {
    case "message.updated": {
      const { message } = payload;
      const text = clipped(content(message.content));
      return { kind, who: message.from_contact ? "contact" : "agent", text, state: message.delivery_state, gone };
    }
    case "message.deleted":
      return { kind, who: "", text: `${payload.message.id} of ${payload.conversation_id}`, state: "deleted", gone };
    case "metadata.updated":
      return { kind, who: payload.subject, text: clipped(pairs(payload.metadata)), state: "", gone };
    case "channel.updated":
      return { kind, who: payload.source, text: payload.id, state: payload.connected ? "connected" : "disconnected", gone };
    case "tag.updated":
      return { kind, who: "", text: payload.name, state: payload.color.replace(/^tag-/, ""), gone };
    case "tag.deleted":
      return { kind, who: "", text: payload.id, state: "deleted", gone };
    default:
      return { kind, who: "", text: clipped(JSON.stringify(payload)), state: "", gone };
  }
}

/** The channel and the conversation that an event names itself: {channel, conversation}, null where it does not. */
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

/** Why a connection has ended: by the token of the ERROR frame, else in the server's own words. */
export function goodbye(token, prose) {
  const known = {
    "401-unauthorized": "The token was not accepted",
    "401-token-expired": "The token has expired",
    "403-destination": "This token does not open what you have asked for: name a channel or a conversation",
    "404-unknown-destination": "There is no such channel or conversation name",
    "408-heart-beat-missed": "The server has not heard from this page for a while",
    "410-position-expired": "This page was too slow: what it lacks is no longer kept",
    "503-event-store-unavailable": "The server cannot read the event store",
    "503-shutting-down": "The server is being stopped",
  };
  return known[token] ?? (prose.trim().replace(/\.$/, "") || token);
}

/** What the verdict on a position means: [words, whether something may be missing]; null: nothing to say. */
export function verdictTold(verdict, after) {
  switch (verdict) {
    case "resumed":
      return [`Resumed after ${after}: nothing is missing, nothing comes twice.`, false];
    case "reset-expired":
      return [`Away for too long: what followed ${after} is no longer kept. Here is what is recent.`, true];
    case "reset-epoch":
      return [`A new history has begun: ${after} is of another one. Here is what is recent.`, true];
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
