// The common part of the JavaScript clients: arguments and output.
//
//     node PROGRAM.mjs URL [LAST-EVENT-ID] [COUNT]
//
// environment: TOKEN, sent with CONNECT ("": none); HEARTBEAT_MS, the client's own interval ("": its default); REPLAY,
// the header "replay" of SUBSCRIBE ("": none).
// stdout: each MESSAGE as one line {"body": "...", "headers": {...}}
// stderr: what happens to the connection, as one line {"event": ..., ...}:
//     connected      CONNECTED: "headers"
//     heart-beat     the client has noticed a heart-beat of the server
//     error          ERROR: "headers", "body"
//     closed         the WebSocket was closed: "code", "reason"
//     disconnected   the RECEIPT for DISCONNECT has arrived
// Ends after COUNT messages (0: never) or on SIGTERM, with DISCONNECT.

import WebSocket from "ws";

export const [url, lastEventId = "", count = "0"] = process.argv.slice(2);
export const token = process.env.TOKEN ?? "";
export const heartbeatMs = Number(process.env.HEARTBEAT_MS || 10_000);
export const subscribeHeaders = {
  ...(lastEventId === "" ? {} : { "last-event-id": lastEventId }),
  ...(process.env.REPLAY ? { replay: process.env.REPLAY } : {}),
};
export const connectHeaders = token === "" ? {} : { Authorization: `Bearer ${token}` };

export const report = (event, facts) => console.error(JSON.stringify({ event, ...facts }));

export const openWebSocket = () => new WebSocket(url, ["v12.stomp", "v11.stomp", "v10.stomp"]);

// Return a function that prints messages. `stop` is called after the last one and on SIGTERM.
export function printing(stop) {
  const expected = Number(count);
  let received = 0;
  process.on("SIGTERM", stop);
  return ({ body, headers }) => {
    if (expected !== 0 && received === expected) {
      return;
    }
    received += 1;
    console.log(JSON.stringify({ body, headers }));
    if (received === expected) {
      stop();
    }
  };
}
