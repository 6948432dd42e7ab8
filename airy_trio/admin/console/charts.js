// Small SVG charts of the last two minutes with one or two lines, a time axis, and a description for screen readers.

import { element } from "./dom.js";

const SPAN_MS = 120_000;
const GAP_MS = 5_000; // samples further apart are not connected: the page was hidden, or the server did not answer
const TICKS = ["−2 min", "−1 min", "now"];
const WIDTH = 240;
const HEIGHT = 48;
const TOP = 3;
const SVG = "http://www.w3.org/2000/svg";

export class Chart {
  #samples = []; // {at, values}, oldest first
  #lines;
  #least;
  #label;
  #format;
  #parts;
  #place;

  /**
   * `place`: an empty element. `lines`: names of the lines; the area below the first is filled. `least`: the smallest
   * value of the top of the scale. `label`: the name of the chart. `format`: returns a value as text, with its unit.
   */
  constructor(place, { lines, least, label, format }) {
    this.#place = place;
    this.#lines = lines;
    this.#least = least;
    this.#label = label;
    this.#format = format;
    const svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    const rule = (name, x1, y1, x2, y2) => drawn("line", { class: name, x1, y1, x2, y2 });
    const paths = lines.map((name) => drawn("path", { class: `line ${name}` }));
    const area = drawn("path", { class: "area" });
    const marker = rule("marker", 0, 0, 0, HEIGHT);
    svg.append(
      rule("grid", 0, TOP, WIDTH, TOP),
      rule("grid", WIDTH / 2, TOP, WIDTH / 2, HEIGHT),
      area,
      rule("base", 0, HEIGHT - 0.5, WIDTH, HEIGHT - 0.5),
      ...paths,
      marker,
    );
    const [top, legend, tip, axis] = ["top", "legend", "tip", "axis"].map((name) => element("p", name));
    axis.setAttribute("aria-hidden", "true"); // the description of the chart has the time
    axis.append(...TICKS.map((tick) => element("span", "tick", tick)));
    legend.append(...(lines.length > 1 ? lines : []).map((name) => element("span", name, name)));
    tip.hidden = true;
    place.append(svg, axis, top, legend, tip);
    this.#parts = { svg, area, paths, marker, top, tip };
    place.addEventListener("pointermove", (event) => this.#point(event));
    place.addEventListener("pointerleave", () => this.#leave());
  }

  /** Add a sample: a value for each line, or null. `at`: its time in milliseconds. */
  add(at, values) {
    this.#samples.push({ at, values });
    while (this.#samples[0].at < at - SPAN_MS) {
      this.#samples.shift();
    }
    this.#draw();
  }

  #draw() {
    const { svg, area, paths, top } = this.#parts;
    const most = Math.max(this.#least, ...this.#samples.flatMap(({ values }) => values.map((value) => value ?? 0)));
    const high = nice(most);
    const stretches = this.#lines.map((_, line) => this.#stretches(line, high));
    stretches.forEach((found, line) => {
      paths[line].setAttribute("d", found.map((points) => `M${points.join("L")}`).join(""));
    });
    area.setAttribute("d", stretches[0].filter((points) => points.length > 1).map(filled).join(""));
    top.textContent = this.#format(high);
    const newest = this.#samples.at(-1).values.map((value) => (value === null ? "none" : this.#format(value)));
    const words = this.#lines.map((name, line) => `${this.#lines.length > 1 ? `${name} ` : ""}${newest[line]}`).join(", ");
    svg.setAttribute("aria-label", `${this.#label}: now ${words}; at most ${this.#format(most)} in the last two minutes`);
  }

  /** Return the points of a line, each as "x y", in stretches that end at a missing value or a gap in time. */
  #stretches(line, high) {
    const found = [];
    let before = null; // the time of the previous point, if the next one continues its stretch
    for (const { at, values } of this.#samples) {
      const value = values[line];
      if (value === null) {
        before = null;
        continue;
      }
      if (before === null || at - before > GAP_MS) {
        found.push([]);
      }
      const y = HEIGHT - 1 - (value / high) * (HEIGHT - TOP - 1);
      found.at(-1).push(`${this.#x(at).toFixed(1)} ${y.toFixed(1)}`);
      before = at;
    }
    return found;
  }

  #x(at) {
    return (1 - (this.#samples.at(-1).at - at) / SPAN_MS) * WIDTH;
  }

  #point({ clientX }) {
    const { left, width } = this.#place.getBoundingClientRect();
    const newest = this.#samples.at(-1)?.at ?? 0;
    const pointed = newest - (1 - (clientX - left) / width) * SPAN_MS;
    const distance = ({ at }) => Math.abs(at - pointed);
    const nearest = this.#samples.reduce((best, one) => (best === null || distance(one) < distance(best) ? one : best), null);
    if (nearest === null || distance(nearest) > GAP_MS) {
      this.#leave();
      return;
    }
    const { marker, tip } = this.#parts;
    const x = this.#x(nearest.at);
    marker.setAttribute("x1", x);
    marker.setAttribute("x2", x);
    marker.classList.add("shown");
    const words = nearest.values.map((value, line) => {
      const words = value === null ? "none" : this.#format(value);
      return this.#lines.length > 1 ? `${this.#lines[line]} ${words}` : words;
    });
    tip.textContent = `${words.join(" · ")}, ${Math.round((newest - nearest.at) / 1000)} s ago`;
    tip.hidden = false;
  }

  #leave() {
    this.#parts.marker.classList.remove("shown");
    this.#parts.tip.hidden = true;
  }
}

/** Return a quantile from counts by bucket; null if there are no observations. */
export function quantile(share, counts, bounds) {
  const all = counts.reduce((sum, one) => sum + one, 0);
  if (all === 0) {
    return null;
  }
  const wanted = share * all;
  let before = 0;
  for (const [bucket, held] of counts.entries()) {
    if (held > 0 && before + held >= wanted) {
      const low = bucket === 0 ? 0 : bounds[bucket - 1];
      const high = bounds[bucket] ?? low; // the last bucket is unbounded
      return low + ((wanted - before) / held) * (high - low);
    }
    before += held;
  }
  return bounds.at(-1);
}

/** Return the path of the area below a stretch, closed at the base. */
function filled(points) {
  const [left, right] = [points[0], points.at(-1)].map((point) => point.split(" ")[0]);
  return `M${left} ${HEIGHT}L${points.join("L")}L${right} ${HEIGHT}Z`;
}

/** Return the next 1, 2 or 5 times a power of ten. */
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((one) => one * power).find((one) => one >= value * 0.9999);
}

function drawn(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) {
    made.setAttribute(key, value);
  }
  return made;
}
