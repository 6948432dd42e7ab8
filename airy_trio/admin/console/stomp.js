// STOMP 1.2 as far as the console needs it: encode and decode frames.

const ESCAPES = { "\\n": "\n", "\\r": "\r", "\\c": ":", "\\\\": "\\" };
const ESCAPED = { "\n": "\\n", "\r": "\\r", ":": "\\c", "\\": "\\\\" };

/** Encode a frame as one WebSocket message. Headers of CONNECT are not escaped (STOMP 1.2, "Value Encoding"). */
export function encode(command, headers) {
  const escape = command === "CONNECT" ? (text) => text : (text) => text.replace(/[\n\r:\\]/g, (one) => ESCAPED[one]);
  const lines = Object.entries(headers).map(([name, value]) => `${escape(name)}:${escape(value)}\n`);
  return `${command}\n${lines.join("")}\n\0`;
}

/** Decode a WebSocket message: command, headers (the first of a name counts), body; null for a heart-beat. */
export function decode(message) {
  const text = message.replace(/^[\r\n]+/, "");
  if (text === "") {
    return null;
  }
  const end = text.search(/\r?\n\r?\n/);
  if (end < 0 || !text.includes("\0", end)) {
    throw new Error("the server sent an invalid STOMP frame");
  }
  const [command, ...lines] = text.slice(0, end).split(/\r?\n/);
  const unescape = command === "CONNECTED" ? (part) => part : (part) => part.replace(/\\[\s\S]/g, (one) => ESCAPES[one]);
  const headers = new Map();
  for (const line of lines) {
    const colon = line.indexOf(":");
    const name = unescape(line.slice(0, colon));
    if (!headers.has(name)) {
      headers.set(name, unescape(line.slice(colon + 1)));
    }
  }
  const begin = end + /\r?\n\r?\n/.exec(text.slice(end))[0].length;
  return { command, headers, body: text.slice(begin, text.lastIndexOf("\0")) };
}
