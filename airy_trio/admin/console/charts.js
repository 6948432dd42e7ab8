// Small SVG charts of the last two minutes with one or two lines, and a description for screen readers.

export const SAMPLES_MAX = 120;
const WIDTH = 240;
const HEIGHT = 48;
const TOP = 3;
const SVG = "http://www.w3.org/2000/svg";

export class Chart {
  #samples = [];
  #lines;
  #least;
  #label;
  #format;
  #parts;
  #place;

  /**
   * `place`: an empty element. `lines`: names of the lines; the area below the first is filled. `least`: the smallest
   * value of the top of the scale. `label`: the name of the chart. `format`: returns a value as text.
   */
  constructor(place, { lines, least, label, format }) {
    this.#place = place;
    this.#lines = lines;
    this.#least = least;
    this.#label = label;
    this.#format = format;
    const svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    svg.append(drawn("line", { class: "base", x1: 0, x2: WIDTH, y1: HEIGHT - 0.5, y2: HEIGHT - 0.5 }));
    const paths = lines.map((name) => drawn("path", { class: `line ${name}` }));
    const area = drawn("path", { class: "area" });
    const marker = drawn("line", { class: "marker", y1: 0, y2: HEIGHT });
    svg.append(area, ...paths, marker);
    const top = document.createElement("span");
    top.className = "top";
    const tip = document.createElement("span");
    tip.className = "tip";
    tip.hidden = true;
    place.append(svg, top, tip);
    this.#parts = { svg, area, paths, marker, top, tip };
    place.addEventListener("pointermove", (event) => this.#point(event));
    place.addEventListener("pointerleave", () => this.#leave());
  }

  /** Add one sample: a value for each line, or null if there is none. */
  add(values) {
    this.#samples.push(values);
    if (this.#samples.length > SAMPLES_MAX) {
      this.#samples.shift();
    }
    this.#draw();
  }

  #draw() {
    const { svg, area, paths, top } = this.#parts;
    const most = Math.max(this.#least, ...this.#samples.flat().map((value) => value ?? 0));
    const high = nice(most);
    const y = (value) => HEIGHT - 1 - (value / high) * (HEIGHT - TOP - 1);
    this.#lines.forEach((_, line) => {
      paths[line].setAttribute("d", path(this.#samples.map((values) => values[line]), y));
    });
    area.setAttribute("d", filled(this.#samples.map((values) => values[0]), y));
    top.textContent = this.#format(high);
    const newest = this.#samples.at(-1).map((value) => (value === null ? "none" : this.#format(value)));
    const words = this.#lines.map((name, line) => `${this.#lines.length > 1 ? `${name} ` : ""}${newest[line]}`).join(", ");
    svg.setAttribute("aria-label", `${this.#label}: now ${words}; at most ${this.#format(most)} in the last two minutes`);
  }

  #point({ clientX }) {
    const { left, width } = this.#place.getBoundingClientRect();
    const at = Math.round(((clientX - left) / width) * (SAMPLES_MAX - 1)) - (SAMPLES_MAX - this.#samples.length);
    const values = this.#samples[at];
    if (values === undefined) {
      this.#leave();
      return;
    }
    const { marker, tip } = this.#parts;
    const x = place(at, this.#samples.length);
    marker.setAttribute("x1", x);
    marker.setAttribute("x2", x);
    marker.classList.add("shown");
    const words = values.map((value, line) => {
      const words = value === null ? "none" : this.#format(value);
      return this.#lines.length > 1 ? `${this.#lines[line]} ${words}` : words;
    });
    tip.textContent = `${words.join(" · ")}, ${this.#samples.length - 1 - at} s ago`;
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

function place(index, length) {
  return ((SAMPLES_MAX - length + index) / (SAMPLES_MAX - 1)) * WIDTH;
}

function path(values, y) {
  let pen = "M";
  let made = "";
  values.forEach((value, index) => {
    if (value === null) {
      pen = "M";
      return;
    }
    made += `${pen}${place(index, values.length).toFixed(1)} ${y(value).toFixed(1)}`;
    pen = "L";
  });
  return made;
}

/** Return the path of the area: each stretch without a gap, closed at the base. */
function filled(values, y) {
  let made = "";
  let stretch = [];
  const close = () => {
    if (stretch.length > 1) {
      made += `M${stretch[0][0]} ${HEIGHT}L${stretch.map((point) => point.join(" ")).join("L")}L${stretch.at(-1)[0]} ${HEIGHT}Z`;
    }
    stretch = [];
  };
  values.forEach((value, index) => {
    if (value === null) {
      close();
    } else {
      stretch.push([place(index, values.length).toFixed(1), y(value).toFixed(1)]);
    }
  });
  close();
  return made;
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
