// Who is connected, and who is behind: the first page of /api/connections, and as many more as were asked for.

import { age, count, counted } from "./words.js";

export const PERIOD_MS = 2000;
const PAGE = 50;
const PAGES_MAX = 10;
const $ = (id) => document.getElementById(id);

export class People {
  #pages = 1;
  #mine = () => null;
  #get;

  /** `get`: fetches a path as JSON. `mine`: the session of this page. */
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

  /** Ask, and show what comes; throws what `get` does. */
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
    $("people").replaceChildren(...items);
    $("nobody").hidden = items.length > 0;
    $("nobody").textContent = behind ? "Nobody is behind." : "Nobody is connected.";
    $("more").hidden = after === null || this.#pages === PAGES_MAX;
    $("more").textContent = `Show more of ${count(total)}`;
  }
}

function described(one, mine) {
  const item = document.createElement("li");
  item.className = one.behind > 0 ? `${one.state} late` : one.state;
  item.dataset.session = one.session;
  const who = text("span", "name", mine ? "this page" : (one.user ?? "anonymous"));
  const state = text("span", "standing", standing(one));
  const where = text("span", "where", `${one.address ?? "unknown"}  ${one.session.slice(0, 8)}`);
  const since = text("span", "since", age(one.connected_s));
  since.title = "connected for";
  item.append(who, state, where, since);
  const names = one.subscriptions.map(({ destination }) => destination);
  item.append(text("span", "names", names.length === 0 ? "no subscription" : names.join("  ")));
  return item;
}

function standing({ state, behind, behind_exactly, subscriptions }) {
  if (state === "connecting" || state === "closing") {
    return state;
  }
  if (behind === 0) {
    return "up to date";
  }
  const waits = subscriptions.some(({ waits_for_acks }) => waits_for_acks) ? ", waits for ACKs" : "";
  return `${counted(behind, "event")}${behind_exactly ? "" : " or more"} behind${waits}`;
}

function text(name, className, words) {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = words;
  return made;
}
