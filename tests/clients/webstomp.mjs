// webstomp-client. It does not reconnect: this program does, as an application has to. Its disconnect() closes the
// WebSocket at once, so that no receipt can come. Arguments and output: program.mjs.

import webstomp from "webstomp-client";

import { connectHeaders, heartbeatMs, openWebSocket, printing, subscribeHeaders, tell } from "./program.mjs";

const RECONNECT_MS = 500;

let client;
let stopped = false;

const print = printing(() => {
  stopped = true;
  client.disconnect();
});

function onDebug(line) {
  if (line === "<<< PONG") {
    tell("heart-beat");
  }
}

function onConnected({ headers }) {
  client.subscribe("/events", print, { ...subscribeHeaders });
  tell("connected", { headers });
}

// It is called for an ERROR frame, and for the end of the WebSocket.
function onFailed({ command, headers, body, code, reason }) {
  if (command === "ERROR") {
    tell("error", { headers, body });
    return;
  }
  tell("closed", { code, reason });
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
