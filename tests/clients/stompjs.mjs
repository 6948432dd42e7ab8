// @stomp/stompjs, configured and used as Airy's inbox does it: reconnects after 2 s, no host header, subscribes to
// /events on every connect with no header of its own, takes an ERROR for a refused login where its message contains
// 401, and unsubscribes after it has disconnected. Arguments and output: program.mjs; one event more:
//     unauthorized   the ERROR's message contains 401

import { Client } from "@stomp/stompjs";

import { connectHeaders, heartbeatMs, openWebSocket, printing, subscribeHeaders, tell } from "./program.mjs";

let subscription;

const client = new Client({
  webSocketFactory: openWebSocket,
  connectHeaders,
  reconnectDelay: 2000,
  heartbeatIncoming: heartbeatMs,
  heartbeatOutgoing: heartbeatMs,
  onConnect: ({ headers }) => {
    subscription = client.subscribe("/events", print, subscribeHeaders);
    tell("connected", { headers });
  },
  onHeartbeatReceived: () => tell("heart-beat"),
  onStompError: ({ headers, body }) => {
    tell("error", { headers, body });
    if (headers.message.includes("401")) {
      tell("unauthorized");
    }
  },
  onWebSocketClose: ({ code, reason }) => tell("closed", { code, reason }),
  onDisconnect: () => tell("disconnected"),
});

const print = printing(() => {
  client.deactivate();
  subscription?.unsubscribe();
});

client.activate();
