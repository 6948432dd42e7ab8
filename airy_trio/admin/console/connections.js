// The connected clients: the first page of /api/connections, and further ones on request.

import { $, element } from "./dom.js";
import { age, count, counted } from "./words.js";

export const PERIOD_MS = 2000;
const PAGE = 50;
const PAGES_MAX = 10;

export class Connections {
  #pages = 1;
  #mine = () => null;
  #get;

  /** `get` fetches a path as JSON. `mine` returns the session of this page. */
  constructor(get, mine) {
    this.#get = get;
    this.#mine = mine;
    $("more").addEventListener("click", () => {
      this.#pages = Math.min(this.#pages + 1, PAGES_MAX);
      this.refresh();
    });
    $("only-behind").addEventListener("change", () => {
      this.#pages = 1;
      this.refresh();
    });
  }

  /** Fetch and show the connections. Throws the errors of `get`. */
  async refresh() {
    const behind = $("only-behind").checked;
    const found = [];
    let after = 0;
    let total = 0;
    for (let page = 0; page < this.#pages && after !== null; page += 1) {
      const answer = await this.#get(`api/connections?limit=${PAGE}&after=${after}&behind=${Number(behind)}`);
      found.push(...answer.connections);
      after = answer.next;
      total = answer.total;
    }
    const items = found.map((one) => described(one, one.session === this.#mine()));
    $("clients").replaceChildren(...items);
    $("no-clients").hidden = items.length > 0;
    $("no-clients").textContent = behind ? "No clients are behind." : "No clients are connected.";
    $("more").hidden = after === null || this.#pages === PAGES_MAX;
    $("more").textContent = `Show more (${count(total)} connected)`;
  }
}

function described(one, mine) {
  const item = document.createElement("li");
  item.className = one.behind > 0 ? `${one.state} late` : one.state;
  item.dataset.session = one.session;
  const user = element("span", "name", mine ? "this page" : (one.user ?? "anonymous"));
  const state = element("span", "status", status(one));
  const where = element("span", "where", `${one.address ?? "unknown"}  ${one.session.slice(0, 8)}`);
  const since = element("span", "since", age(one.connected_s));
  since.title = "connected for";
  item.append(user, state, where, since);
  const names = one.subscriptions.map(({ destination }) => destination);
  item.append(element("span", "names", names.length === 0 ? "no subscription" : names.join("  ")));
  return item;
}

function status({ state, behind, behind_exactly, subscriptions }) {
  if (state === "connecting" || state === "closing") {
    return state;
  }
  if (behind === 0) {
    return "up to date";
  }
  const waits = subscriptions.some(({ waits_for_acks }) => waits_for_acks) ? ", waits for ACKs" : "";
  return `${counted(behind, "event")}${behind_exactly ? "" : " or more"} behind${waits}`;
}
