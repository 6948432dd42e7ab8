// @stomp/rx-stomp: it reconnects and subscribes again by itself. Arguments and output: program.mjs.

import { RxStomp } from "@stomp/rx-stomp";

import { connectHeaders, heartbeatMs, openWebSocket, printing, report, subscribeHeaders } from "./program.mjs";

const rxStomp = new RxStomp();
rxStomp.configure({
  webSocketFactory: openWebSocket,
  connectHeaders,
  reconnectDelay: 500,
  heartbeatIncoming: heartbeatMs,
  heartbeatOutgoing: heartbeatMs,
  onHeartbeatReceived: () => report("heart-beat"),
});
rxStomp.stompClient.onDisconnect = () => report("disconnected");
rxStomp.serverHeaders$.subscribe((headers) => report("connected", { headers }));
rxStomp.stompErrors$.subscribe(({ headers, body }) => report("error", { headers, body }));

const print = printing(() => rxStomp.deactivate());
rxStomp.watch({ destination: "/events", subHeaders: subscribeHeaders }).subscribe(print);
rxStomp.activate();
