// @stomp/stompjs, configured as Airy's inbox configures it: reconnects after 2 s, subscribes to /events on every
// connect, no header of its own.
//
//     node stompjs.mjs URL [LAST-EVENT-ID] [COUNT]
//
// stdout: each MESSAGE as one line {"body": "...", "headers": {...}}
// stderr: what happens to the connection, as one line {"event": "connected" | "error" | "closed", ...}
// Ends after COUNT messages (0: never) or on SIGTERM, with DISCONNECT.

import { Client } from "@stomp/stompjs";
import WebSocket from "ws";

const [url, lastEventId = "", count = "0"] = process.argv.slice(2);
const expected = Number(count);
let received = 0;

const tell = (event, facts) => console.error(JSON.stringify({ event, ...facts }));

const client = new Client({
  webSocketFactory: () => new WebSocket(url, ["v12.stomp", "v11.stomp", "v10.stomp"]),
  reconnectDelay: 2000,
  onConnect: (frame) => {
    const headers = lastEventId === "" ? {} : { "last-event-id": lastEventId };
    client.subscribe("/events", onMessage, headers);
    tell("connected", { headers: frame.headers });
  },
  onStompError: (frame) => tell("error", { headers: frame.headers, body: frame.body }),
  onWebSocketClose: (event) => tell("closed", { code: event.code, reason: event.reason }),
});

function onMessage({ body, headers }) {
  if (expected !== 0 && received === expected) {
    return;
  }
  received += 1;
  console.log(JSON.stringify({ body, headers }));
  if (received === expected) {
    client.deactivate();
  }
}

process.on("SIGTERM", () => client.deactivate());
client.activate();
