// Which server the page shows: its host, its process, the condition of its parts, and links to other consoles.

import { $, element } from "./dom.js";

const PORTS = { "http:": 80, "https:": 443 }; // location.port is "" for these
let linked = ""; // the data of the links, which are replaced only if it changes, so that they keep the focus

/** Show which process answered: an answer of /api/figures. */
export function showServer({ node, version, recording }) {
  const { name } = node.processes[node.number];
  $("host").textContent = node.host;
  const facts = [name, `process ${node.process}`, `version ${version}`, recording ? "records" : "does not record"];
  $("process").textContent = facts.filter((fact) => fact !== "").join(" · ");
  document.title = `${[node.host, name].filter((part) => part !== "").join(", ")} – airy-trio console`;
  if (JSON.stringify(node) !== linked) {
    linked = JSON.stringify(node);
    showConsoles(node);
  }
}

/** Show whether the server is ready, in a few words. */
export function showState(words, well) {
  $("state").textContent = words;
  $("state").className = well ? "well" : "bad";
}

/** Show the condition of each part. `head`: the position of the newest event; null if it is not known. */
export function showParts(parts, head) {
  const newest = head === null ? [] : [["newest event", { well: true, reason: head }]];
  const rows = [...Object.entries(parts), ...newest].map(([name, { well, reason }]) => {
    const row = element("div", name === "newest event" ? "newest" : well ? "well" : "bad");
    row.append(element("dt", "", name), element("dd", "", well ? reason : `not ready: ${reason}`));
    return row;
  });
  $("parts").replaceChildren(...rows);
}

/**
 * Link to the other processes of this command, and to the consoles in the settings. The address of a process is that of
 * this page with another port. If a proxy changes the port, the address is unknown: the name has no link.
 */
function showConsoles({ number, processes, others }) {
  const here = new URL(".", location.href).href;
  const direct = Number(location.port || PORTS[location.protocol]) === processes[number].port;
  const found = processes.length === 1 ? [] : processes.map(({ name, port }, index) => ({
    name,
    url: index !== number && direct ? onPort(port) : null,
    current: index === number,
  }));
  const known = new Set([here, ...processes.map(({ port }) => onPort(port))]);
  for (const text of others) {
    const url = URL.canParse(text) ? folder(text) : null; // null: the host is invalid
    if (!known.has(url ?? text)) {
      known.add(url ?? text);
      found.push({ name: text.replace(/^https?:[/]+|[/]$/g, ""), url, current: false });
    }
  }
  $("consoles").hidden = found.length === 0;
  $("consoles-list").replaceChildren(...found.map(linkTo));
}

function linkTo({ name, url, current }) {
  const item = document.createElement("li");
  const link = element(url === null ? "span" : "a", "", name);
  if (url !== null) {
    link.href = url;
  }
  if (current) {
    link.setAttribute("aria-current", "page");
  }
  item.append(link);
  return item;
}

/** Return the address of a console: the page's own links are relative, so its path ends in a slash. */
function folder(text) {
  const url = new URL(text);
  url.pathname += url.pathname.endsWith("/") ? "" : "/";
  return url.href;
}

function onPort(port) {
  const url = new URL(".", location.href);
  url.port = port;
  return url.href;
}
