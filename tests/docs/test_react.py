"""The hooks of the page about React, with the component that uses them, in a real browser."""

import json
import shutil
from pathlib import Path
from typing import Final

import pytest
import trio

from tests.application import Application
from tests.clients.client_processes import FOLDER as CLIENTS
from tests.clients.client_processes import SMALL_WEBSOCKET, missing
from tests.docs.test_event_schema import TSC
from tests.docs.test_load_then_live import follows, program
from tests.processes import Program, running

TIMEOUT_S: Final = 20.0
OPTIONS: Final = ("--allowJs", "--jsx", "react-jsx", "--module", "esnext", "--target", "es2022", "--outDir", "made")
MODULES: Final = {
    "scheduler": "scheduler/cjs/scheduler.development.js",
    "react": "react/cjs/react.development.js",
    "react/jsx-runtime": "react/cjs/react-jsx-runtime.development.js",
    "react-dom": "react-dom/cjs/react-dom.development.js",
    "react-dom/client": "react-dom/cjs/react-dom-client.development.js",
}
"""Development builds, because only these run effects twice in StrictMode."""
LOADER: Final = """
globalThis.process = { env: { NODE_ENV: 'development' } };
const texts = %s, loaded = {};
globalThis.load = (name) => {
  if (!(name in loaded)) new Function('require', 'exports', texts[name])(load, loaded[name] = {});
  return loaded[name];
};
"""
"""React has no build for browsers, so this gives its files a `require`."""
IMPORTS: Final = {
    "react": "export const { StrictMode, useEffect, useReducer } = load('react');",
    "react/jsx-runtime": "export const { jsx, jsxs } = load('react/jsx-runtime');",
    "react-dom/client": "export const { createRoot } = load('react-dom/client');",
    "@stomp/stompjs": "export const { Client } = StompJs;",
}
PAGE: Final = """<!doctype html>
<title>React</title>
<div id="root"></div>
<script src="stomp.umd.min.js"></script>
<script src="loader.js"></script>
<script type="importmap">%s</script>
<script type="module">
import { StrictMode } from 'react';
import { jsx } from 'react/jsx-runtime';
import { createRoot } from 'react-dom/client';
import { Tags } from './Tags.js';
createRoot(document.getElementById('root')).render(jsx(StrictMode, { children: jsx(Tags, { url: '%s' }) }));
</script>
"""

RESETS: Final = """
export const useReducer = (step, initial) => [initial, () => {}], useEffect = (effect) => { effect(); };
export class Client {
  activate() {
    this.onConnect();                              // with a position that has expired
    this.message({ headers: { 'message-id': 'aaaaaa-7' }, body: '{}' });
    this.receipt({ headers: { resume: 'reset-expired', position: 'aaaaaa-0' } });
    this.onConnect();                              // the connection was lost before the first event
    console.log(this.sent['last-event-id']);
  }
  watchForReceipt(_, receipt) { this.receipt = receipt; }
  subscribe(_, message, headers) { Object.assign(this, { message, sent: headers }); }
}
"""
"""A React and a stompjs of a few lines, in which a client receives a reset and loses its connection at once."""

LEFT: Final = (
    SMALL_WEBSOCKET
    + """
import { Client } from '@stomp/stompjs';
export { Client };
let leave;
export const useReducer = (step, initial) => [initial, ({ type }) => console.log(type)];
export const useEffect = (effect) => { leave = effect(); };
WebSocket.prototype.onsubscribe = function (frame) {
  const head = `MESSAGE\\nsubscription:${/\\nid:(.*)/.exec(frame)[1]}\\n\\n`;
  this.receive(head + '{"type":"before"}\\0');
  setTimeout(() => leave());
  this.receive(head + '{"type":"after"}\\0');
  setTimeout(process.exit);
};
"""
)
"""A WebSocket that receives one event before the hook's effect has ended, and one after."""


async def compiled(folder: Path) -> str:
    """Return the component as JavaScript."""
    (folder / "Tags.jsx").write_text(program("how-to/react.md", "Tags.jsx"))
    with trio.fail_after(TIMEOUT_S):
        async with running(Program, [shutil.which("node") or "", str(TSC), *OPTIONS, "Tags.jsx"], folder=folder) as tsc:
            assert await tsc.wait() == 0, tsc.out.all
    return (folder / "made" / "Tags.js").read_text()


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "hook,url", [("use-events.js", "http://localhost:8080"), ("use-stomp.js", "ws://localhost:8080/ws.communication")]
)
async def test_component_shows_what_the_database_has(
    hook: str, url: str, sqlite_application: Application, tmp_path: Path
) -> None:
    if reason := missing("react.mjs"):
        pytest.skip(reason)
    texts = {name: (CLIENTS / "node_modules" / path).read_text() for name, path in MODULES.items()}
    imports = {name: f"data:text/javascript,{text}" for name, text in IMPORTS.items()}
    scripts = {
        "/loader.js": LOADER % json.dumps(texts),
        "/Tags.js": await compiled(tmp_path),
        "/use-events.js": program("how-to/react.md", hook),
    }
    await follows(sqlite_application, tmp_path, PAGE % (json.dumps({"imports": imports}), url), scripts)


async def printed(made: str, folder: Path) -> list[str]:
    """Run the stompjs hook in Node.js; ``made``: a module in place of React and stompjs."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed")
    hook = program("how-to/react.md", "use-stomp.js").replace("'react'", "'./made.mjs'")
    (folder / "made.mjs").write_text(made)
    (folder / "hook.mjs").write_text(
        hook.replace("'@stomp/stompjs'", "'./made.mjs'") + "useEvents('ws:', '/events');\n"
    )
    with trio.fail_after(TIMEOUT_S):
        async with running(Program, [node, "hook.mjs"], folder=folder) as run:
            assert await run.wait() == 0, run.err.all
            return run.out.all


async def test_stomp_hook_forgets_its_position_at_a_reset(tmp_path: Path) -> None:
    """Another node may still be able to resume at the old position, but the component has cleared its data."""
    assert await printed(RESETS, tmp_path) == ["aaaaaa-0"]


async def test_stomp_hook_shows_no_event_of_a_former_destination(tmp_path: Path) -> None:
    """It could come after the reset for the next destination, whose connection is another one."""
    if reason := missing("react.mjs"):
        pytest.skip(reason)
    (tmp_path / "node_modules").symlink_to(CLIENTS / "node_modules")
    assert await printed(LEFT, tmp_path) == ["reset", "before"]
