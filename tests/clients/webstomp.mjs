// webstomp-client. It does not reconnect, so this program does, as an application must. Its disconnect() closes the
// WebSocket at once, so no receipt can arrive. Arguments and output: program.mjs.

import webstomp from "webstomp-client";

import { connectHeaders, heartbeatMs, openWebSocket, printing, report, subscribeHeaders } from "./program.mjs";

const RECONNECT_MS = 500;

let client;
let stopped = false;

const print = printing(() => {
  stopped = true;
  client.disconnect();
});

function onDebug(line) {
  if (line === "<<< PONG") {
    report("heart-beat");
  }
}

function onConnected({ headers }) {
  client.subscribe("/events", print, { ...subscribeHeaders });
  report("connected", { headers });
}

// The library calls it for an ERROR frame, and for the end of the WebSocket.
function onFailed({ command, headers, body, code, reason }) {
  if (command === "ERROR") {
    report("error", { headers, body });
    return;
  }
  report("closed", { code, reason });
  if (!stopped) {
    setTimeout(connect, RECONNECT_MS);
  }
}

function connect() {
  const socket = openWebSocket();
  socket.on("error", () => {}); // the end of the WebSocket follows
  client = webstomp.over(socket, { heartbeat: { incoming: heartbeatMs, outgoing: heartbeatMs } });
  client.debug = onDebug;
  client.connect({ ...connectHeaders }, onConnected, onFailed);
}

connect();
