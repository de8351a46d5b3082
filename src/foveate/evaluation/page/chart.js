// Elements, and curves as SVG. Texts from outside only ever become text nodes and attributes.

const SVG = "http://www.w3.org/2000/svg";

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  return filled(made, attributes, children);
}

function shape(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  return filled(made, attributes, children);
}

function filled(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function colours(one) {
  // Black and grey follow the theme; other colours are made lighter in the dark.
  const grey = /^#(..)\1\1$/.exec(one.colour);
  const colour = grey ? (grey[1] === "00" ? "var(--ink)" : "var(--muted)") : one.colour;
  return { "data-colour": true, style: `--colour:${colour}` + (grey ? `;--lift:0%;--shown-text:${colour}` : "") };
}

const MARKS = {
  o: (r) => `M${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0Z`,
  s: (r) => `M${-r} ${-r}H${r}V${r}H${-r}Z`,
  D: (r) => `M0 ${-1.3 * r}L${1.3 * r} 0L0 ${1.3 * r}L${-1.3 * r} 0Z`,
  d: (r) => `M0 ${-1.4 * r}L${0.8 * r} 0L0 ${1.4 * r}L${-0.8 * r} 0Z`,
  "^": (r) => `M0 ${-1.2 * r}L${1.2 * r} ${r}H${-1.2 * r}Z`,
  v: (r) => `M0 ${1.2 * r}L${1.2 * r} ${-r}H${-1.2 * r}Z`,
  "<": (r) => `M${-1.2 * r} 0L${r} ${-1.2 * r}V${1.2 * r}Z`,
  ">": (r) => `M${1.2 * r} 0L${-r} ${-1.2 * r}V${1.2 * r}Z`,
  p: (r) => `M0 ${-1.2 * r}L${1.15 * r} ${-0.37 * r}L${0.71 * r} ${r}H${-0.71 * r}L${-1.15 * r} ${-0.37 * r}Z`,
  P: (r) => `M${-r / 2.2} ${-1.2 * r}h${r / 1.1}v${0.75 * r}h${0.75 * r}v${r / 1.1}h${-0.75 * r}v${0.75 * r}h${-r / 1.1}v${-0.75 * r}h${-0.75 * r}v${-r / 1.1}h${0.75 * r}Z`,
  H: (r) => `M${-1.1 * r} 0L${-0.55 * r} ${-r}H${0.55 * r}L${1.1 * r} 0L${0.55 * r} ${r}H${-0.55 * r}Z`,
  x: (r) => `M${-r} ${-r}L${r} ${r}M${-r} ${r}L${r} ${-r}`,
  X: (r) => `M${-r} ${-r}L${r} ${r}M${-r} ${r}L${r} ${-r}M0 ${-r}V${r}`,
  "1": (r) => `M0 0V${1.2 * r}M0 0L${-r} ${-0.8 * r}M0 0L${r} ${-0.8 * r}`,
  "*": (r) => Array.from({ length: 10 }, (_, n) => {
    const [long, angle] = [(n % 2 ? 0.5 : 1.4) * r, (Math.PI * n) / 5 - Math.PI / 2];
    return `${n ? "L" : "M"}${(long * Math.cos(angle)).toFixed(2)} ${(long * Math.sin(angle)).toFixed(2)}`;
  }).join("") + "Z",
};

const groupedBy = (all, key) => {
  const found = new Map();
  for (const one of all) found.set(key(one), [...(found.get(key(one)) ?? []), one]);
  return found;
};

function mark(one, x, y, r) {
  const path = (MARKS[one.marker] ?? MARKS.o)(r);
  return shape("path", { class: "mark", d: path, transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})` });
}

function swatch(one) {
  return shape("svg", { class: "swatch plot", viewBox: "-11 -6 22 12", "aria-hidden": "true", ...colours(one) },
    shape("path", { class: "series", d: "M-11 0H11", "stroke-width": 2, "stroke-dasharray": dashes(one, 2) }),
    mark(one, 0, 0, 3.4));
}

function dashes(one, width) {
  return one.dash.length ? one.dash.map((part) => part * width).join(" ") : null;
}

// Places as near as may be to those wanted, none closer to the next than `gap`, between two ends.
function spread(wanted, gap, low, high) {
  const order = wanted.map((_, n) => n).sort((a, b) => wanted[a] - wanted[b] || a - b);
  const tall = (block) => block.members.length * gap;
  const fit = (start, block) => Math.max(low, Math.min(start, high - tall(block)));
  const blocks = [];
  for (const n of order) {
    let block = { members: [n] };
    block.start = fit(wanted[n] - gap / 2, block);
    while (blocks.length && blocks.at(-1).start + tall(blocks.at(-1)) > block.start) {
      block = { members: [...blocks.pop().members, ...block.members] };
      const sum = block.members.reduce((all, one, place) => all + wanted[one] - (place + 0.5) * gap, 0);
      block.start = fit(sum / block.members.length, block);
    }
    blocks.push(block);
  }
  const placed = [];
  for (const block of blocks) block.members.forEach((one, n) => (placed[one] = block.start + (n + 0.5) * gap));
  return placed;
}

function ticks(low, high, logarithmic) {
  if (logarithmic) {
    const found = [];
    for (let power = Math.ceil(Math.log2(low) - 0.05); power <= Math.log2(high) + 0.05; power++) found.push(2 ** power);
    if (found.length > 1) return found;
  }
  const rough = (high - low) / 5 || 1;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((n) => n * unit).find((one) => one >= rough);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + 1e-9 * step; n++) found.push(n * step);
  return found;
}

const figure = (value) => Number(value.toPrecision(4)).toLocaleString("en", { maximumFractionDigits: 4 });

/* A chart. `series` have points {x, y, low, high, said}, x ascending; `levels` have {name, y}.
   `names` are those of budgets where x counts them. `tell` gets what is said of a point. */
function drawChart({ series, levels, xName, logarithmic, names, width, height, intervals, small, label, tell }) {
  const points = series.flatMap((one) => one.points);
  const letters = small ? 10.5 : 12;
  const svg = shape("svg", { class: "plot", viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": label,
    tabindex: points.length && !small ? 0 : null });
  if (!points.length) {
    svg.append(shape("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "No method is chosen."));
    return svg;
  }
  const scale = (x) => (logarithmic ? Math.log2(x) : x);
  const xs = points.map((one) => one.x);
  const [left, right] = [Math.min(...xs), Math.max(...xs)];
  const span = scale(right) - scale(left) || 1;
  // Names stand at the left ends, of curves that begin in the middle at their right ends.
  const part = (x) => (scale(x) - scale(left)) / span;
  const late = (one) => !small && width > 600 && part(one.points[0].x) > 0.3
    && part(one.points.at(-1).x) > 1 - part(one.points[0].x);
  const needed = (side) => side.reduce((most, one) => Math.max(most, one.name.length * letters * 0.62 + 36), 10);
  const columns = [series.filter((one) => !late(one)), series.filter(late)];
  const room = { left: small ? 34 : 52, right: small ? 14 : 72, top: 12, bottom: small ? 26 : 44 };
  const begin = room.left + Math.min(0.36 * width, needed(columns[0]));
  const border = width - room.right, end = border - (columns[1].length ? needed(columns[1]) : 10);
  const across = (x) => (right > left ? begin + ((scale(x) - scale(left)) / span) * (end - begin) : (begin + end) / 2);
  const bounds = [...points.flatMap((one) => (intervals ? [one.y, one.low ?? one.y, one.high ?? one.y] : [one.y])),
    ...levels.map((one) => one.y)];
  let [low, high] = [Math.min(...bounds), Math.max(...bounds)];
  const air = 0.04 * Math.max(high - low, 10);
  [low, high] = [low - air, high + air];
  if (high - low < 10) {
    const middle = Math.min(Math.max((low + high) / 2, 4), 96);
    [low, high] = [middle - 5, middle + 5];
  }
  [low, high] = [Math.max(low, -2), Math.min(high, 103)];
  const up = (y) => height - room.bottom - ((y - low) / (high - low)) * (height - room.top - room.bottom);

  for (const y of ticks(low, high)) {
    if (y < 0 || y > 100) continue;
    svg.append(shape("line", { class: "grid", x1: room.left, x2: border, y1: up(y), y2: up(y) }),
      shape("text", { class: "tick", x: room.left - 6, y: up(y) + 4, "text-anchor": "end" }, figure(y)));
  }
  const marks = names ? names.map((_, n) => n) : ticks(left, right, logarithmic);
  for (const x of marks) {
    svg.append(shape("line", { class: "grid", x1: across(x), x2: across(x), y1: room.top, y2: height - room.bottom }),
      shape("text", { class: "tick", x: across(x), y: height - room.bottom + 16, "text-anchor": "middle" },
        names ? names[x] : figure(x)));
  }
  if (!small) {
    svg.append(
      shape("text", { class: "axis-name", x: width > 600 ? (begin + end) / 2 : width / 2, y: height - 6,
        "text-anchor": "middle" }, xName),
      shape("text", { class: "axis-name", "text-anchor": "middle", transform: `translate(13 ${height / 2}) rotate(-90)` },
        "right answers, %"));
  }
  const heights = spread(levels.map((one) => up(one.y)), letters + 2, room.top - 8, height - room.bottom + 8);
  levels.forEach((one, n) => {
    svg.append(shape("line", { class: "level", x1: room.left, x2: border, y1: up(one.y), y2: up(one.y) }));
    if (!small) svg.append(shape("text", { class: "tick", x: border + 6, y: heights[n] + 4 }, one.name));
  });
  const ends = new Map();
  columns.forEach((side, at) => {
    const wanted = side.map((one) => up(one.points.at(-at).y));
    const placed = spread(wanted, letters + 2, room.top - 6, height - room.bottom + 4);
    side.forEach((one, n) => ends.set(one, placed[n]));
  });
  // Of curves that coincide each has dashes where the others have gaps, and hollow marks, ever larger.
  const same = groupedBy(series, (one) => one.points.map((p) => `${p.x} ${p.y}`).join());
  const drawn = series.map((one) => {
    const twins = same.get(one.points.map((p) => `${p.x} ${p.y}`).join());
    const turn = twins.indexOf(one), several = twins.length > 1;
    const group = shape("g", { ...colours(one), "data-name": one.name });
    const path = one.points.map((p, at) => `${at ? "L" : "M"}${across(p.x).toFixed(1)} ${up(p.y).toFixed(1)}`).join("");
    if (intervals && one.points.every((p) => p.low !== null)) {
      const edge = [...one.points.map((p) => [p.x, p.low]), ...one.points.map((p) => [p.x, p.high]).reverse()];
      if (one.points.length > 1) {
        const outline = edge.map(([x, y], at) => `${at ? "L" : "M"}${across(x).toFixed(1)} ${up(y).toFixed(1)}`).join("");
        group.append(shape("path", { class: "band", d: outline + "Z" }));
      } else {
        const [[x, from], [, to]] = edge;
        group.append(shape("line", { class: "series", x1: across(x), x2: across(x), y1: up(from), y2: up(to) }));
      }
    }
    const thick = one.strong && !small ? 2.2 : 1.3;
    group.append(shape("path", { class: "series", d: path, "stroke-width": thick,
      "stroke-dasharray": several ? `6 ${6 * (twins.length - 1)}` : dashes(one, thick),
      "stroke-dashoffset": several ? -6 * turn : null }));
    const size = (small ? 2.6 : 4) + (small ? 1 : 1.6) * (several ? twins.length - 1 - turn : 0);
    for (const p of one.points) group.append(mark(one, across(p.x), up(p.y), size));
    const behind = late(one), last = one.points.at(behind ? -1 : 0), at = ends.get(one);
    const near = behind ? end + 22 : begin - 22;
    group.append(
      shape("line", { class: "lead-line", x1: across(last.x), y1: up(last.y), x2: near, y2: at }),
      shape("text", { class: "end", x: near + (behind ? 4 : -4), y: at + 4, "text-anchor": behind ? "start" : "end",
        "font-size": letters }, one.name));
    return group;
  });
  svg.append(...[...drawn].reverse());  // methods above baselines
  for (const twins of same.values()) {  // the largest marks lowest
    if (twins.length > 1) for (const one of twins) svg.append(drawn[series.indexOf(one)]);
  }
  if (tell) watch(svg, drawn, series, across, up, width, tell);
  return svg;
}

// Pointing at a chart, or the arrow keys, choose its nearest point: the others fade, and its figures are told.
function watch(svg, drawn, series, across, up, width, tell) {
  let chosen = null;
  const choose = (n, p) => {
    chosen = [n, p];
    drawn.forEach((group, other) => {
      group.classList.toggle("quiet", other !== n);
      group.classList.toggle("on", other === n);
    });
    tell(series[n].points[p].said);
  };
  const leave = () => {
    chosen = null;
    drawn.forEach((group) => group.classList.remove("quiet", "on"));
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), ratio = width / box.width;
    const [x, y] = [(event.clientX - box.left) * ratio, (event.clientY - box.top) * ratio];
    const named = event.target.closest?.("[data-name]");
    let best = null;
    series.forEach((one, n) => one.points.forEach((point, p) => {
      let far = Math.hypot(across(point.x) - x, up(point.y) - y);
      if (named && drawn[n] === named) far /= 4;
      if (!best || far < best[0]) best = [far, n, p];
    }));
    if (best) choose(best[1], best[2]);
  });
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("blur", leave);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!step) return;
    event.preventDefault();
    if (!chosen) return choose(0, 0);
    const n = (chosen[0] + step[0] + series.length) % series.length;
    choose(n, Math.min(Math.max(chosen[1] + step[1], 0), series[n].points.length - 1));
  });
}
