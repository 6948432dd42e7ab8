// @stomp/stompjs, configured and used as in Airy's inbox: it reconnects after 2 s, sends no host header, subscribes to
// /events on every connect without further headers, takes an ERROR for a refused login if its message contains 401, and
// unsubscribes after it has disconnected. Arguments and output: program.mjs, with one more event:
//     unauthorized   the ERROR's message contains 401

import { Client } from "@stomp/stompjs";

import { connectHeaders, heartbeatMs, openWebSocket, printing, report, subscribeHeaders } from "./program.mjs";

let subscription;

const client = new Client({
  webSocketFactory: openWebSocket,
  connectHeaders,
  reconnectDelay: 2000,
  heartbeatIncoming: heartbeatMs,
  heartbeatOutgoing: heartbeatMs,
  onConnect: ({ headers }) => {
    subscription = client.subscribe("/events", print, subscribeHeaders);
    report("connected", { headers });
  },
  onHeartbeatReceived: () => report("heart-beat"),
  onStompError: ({ headers, body }) => {
    report("error", { headers, body });
    if (headers.message.includes("401")) {
      report("unauthorized");
    }
  },
  onWebSocketClose: ({ code, reason }) => report("closed", { code, reason }),
  onDisconnect: () => report("disconnected"),
});

const print = printing(() => {
  client.deactivate();
  subscription?.unsubscribe();
});

client.activate();
