// Draws what methods keep: three views of the same picture, from the numbers in each picture's data-cells.
(() => {
  "use strict";
  const NARROW = 860; // pixels up to which answers lie below the question, as in page.css
  const RAMP = [[29, 20, 74], [104, 38, 122], [190, 62, 92], [243, 130, 52], [252, 226, 138]]; // low to high, by luminance
  const SVG = "http://www.w3.org/2000/svg";
  const state = { view: "kept", step: Infinity, cell: null, timer: 0 };
  const pictures = new Map(); // drawn elements, with what belongs to them

  const make = (name, attributes, parent) => {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    parent.append(element);
    return element;
  };

  const ramp = (share) => {
    const at = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1);
    const low = Math.min(Math.floor(at), RAMP.length - 2);
    return RAMP[low].map((one, band) => Math.round(one + (RAMP[low + 1][band] - one) * (at - low)));
  };

  // A path around all cells for which `inside` holds, filled.
  const fill = (cells, inside) => {
    let path = "";
    for (let row = 0; row < cells.rows; row++) {
      for (let column = 0; column < cells.columns; ) {
        let end = column;
        while (end < cells.columns && inside(row * cells.columns + end)) end++;
        if (end > column) path += `M${column} ${row}H${end}V${row + 1}H${column}Z`;
        column = Math.max(end, column + 1);
      }
    }
    return path;
  };

  // Lines between neighbours of different groups, where at least one is `drawn`, and around the border.
  const edges = (cells, group, drawn) => {
    const at = (row, column) =>
      row < 0 || column < 0 || row >= cells.rows || column >= cells.columns ? -1 : row * cells.columns + column;
    const apart = (a, b) =>
      ((a >= 0 && drawn(a)) || (b >= 0 && drawn(b))) && (a < 0 ? null : group(a)) !== (b < 0 ? null : group(b));
    let path = "";
    for (let row = 0; row <= cells.rows; row++) {
      for (let column = 0; column <= cells.columns; column++) {
        if (column < cells.columns && apart(at(row - 1, column), at(row, column))) path += `M${column} ${row}h1`;
        if (row < cells.rows && apart(at(row, column - 1), at(row, column))) path += `M${column} ${row}v1`;
      }
    }
    return path;
  };

  const place = (cells, cell) => `row ${Math.floor(cell / cells.columns) + 1}, column ${(cell % cells.columns) + 1}`;

  const number = (value) => String(Number(value.toPrecision(3)));

  // What became of a cell, in words: the place, and the rest.
  const tell = (cells, cell) => {
    const parts = [];
    const kept = cells.keep[cell];
    if (!cells.rank) parts.push("kept, as all are");
    else if (kept && cells.one_by_one) parts.push(`kept, pick ${cells.rank[cell]} of ${cells.kept.length}`);
    else if (kept) parts.push(`kept, from a budget of ${cells.rank[cell]} on`);
    else if (cells.target && cells.target[cell] >= 0) parts.push(`merged into ${place(cells, cells.target[cell])}`);
    else if (cells.dropped[cell] === -1) parts.push("dropped before the vision encoder");
    else if (cells.dropped[cell] === 0) parts.push("dropped before the LLM");
    else parts.push(`dropped at layer ${cells.dropped[cell]}`);
    if (cells.score && cells.score[cell] !== null) parts.push(`score ${number(cells.score[cell])}`);
    return parts.join(", ");
  };

  const adopt = (root) => {
    const cells = JSON.parse(root.dataset.cells);
    const total = cells.rows * cells.columns;
    cells.keep = new Array(total).fill(false);
    for (const cell of cells.kept) cells.keep[cell] = true;
    if (cells.score) {
      const known = cells.score.filter((one) => one !== null).sort((a, b) => a - b);
      cells.low = known[Math.floor(0.02 * (known.length - 1))]; // single outliers shall not make all others alike
      cells.high = known[Math.ceil(0.98 * (known.length - 1))];
    }
    const frame = root.querySelector(".fv-frame");
    const canvas = document.createElement("canvas");
    Object.assign(canvas, { width: cells.columns, height: cells.rows, className: "fv-colours" });
    canvas.setAttribute("aria-hidden", "true");
    frame.append(canvas);
    const svg = make("svg", { viewBox: `0 0 ${cells.columns} ${cells.rows}`, preserveAspectRatio: "none", class: "fv-lines", "aria-hidden": "true" }, frame);
    const parts = {};
    for (const name of ["veil", "groups", "halo", "edge", "latest"]) parts[name] = make("path", { class: `fv-${name}` }, svg);
    parts.cursor = make("rect", { class: "fv-cursor", width: 1, height: 1, visibility: "hidden" }, svg);
    const tip = document.createElement("div");
    tip.className = "fv-tip";
    tip.setAttribute("aria-hidden", "true");
    tip.hidden = true;
    frame.append(tip);
    const caption = root.querySelector(".fv-cell");
    pictures.set(root, { root, cells, frame, canvas, parts, tip, caption, own: null });
    draw(pictures.get(root));
  };

  const paint = (picture, colour) => {
    const { canvas, cells } = picture;
    const context = canvas.getContext("2d");
    const image = context.createImageData(cells.columns, cells.rows);
    for (let cell = 0; cell < cells.rows * cells.columns; cell++) image.data.set(colour(cell) || [0, 0, 0, 0], 4 * cell);
    context.putImageData(image, 0, 0);
  };

  // The colours of merged tokens: each cell in the mean colour of all that became one token with it.
  const blend = (picture) => {
    const { cells, root } = picture;
    const image = root.querySelector("img");
    if (!image.complete || !image.naturalWidth) {
      image.addEventListener("load", () => draw(picture), { once: true });
      return () => null;
    }
    if (!picture.means) {
      const small = document.createElement("canvas");
      Object.assign(small, { width: cells.columns, height: cells.rows });
      const context = small.getContext("2d");
      context.imageSmoothingQuality = "high";
      context.drawImage(image, 0, 0, cells.columns, cells.rows);
      const pixels = context.getImageData(0, 0, cells.columns, cells.rows).data;
      const sums = new Map();
      cells.target.forEach((target, cell) => {
        const sum = sums.get(target) || [0, 0, 0, 0];
        for (let band = 0; band < 3; band++) sum[band] += pixels[4 * cell + band];
        sum[3]++;
        sums.set(target, sum);
      });
      picture.means = sums;
    }
    return (cell) => {
      const sum = picture.means.get(cells.target[cell]);
      return cells.target[cell] < 0 ? null : [sum[0] / sum[3], sum[1] / sum[3], sum[2] / sum[3], 170];
    };
  };

  const heat = (cells, cell) => {
    const score = cells.score[cell];
    if (score === null) return null;
    return [...ramp(cells.high > cells.low ? (score - cells.low) / (cells.high - cells.low) : 0.5), 185];
  };

  const draw = (picture) => {
    const { cells, parts, root } = picture;
    const view = state.view;
    const order = view === "order" && cells.rank;
    const last = order ? Math.min(state.step, Math.max(...cells.rank)) : 0;
    const shown = order ? (cell) => cells.rank[cell] > 0 && cells.rank[cell] <= last : (cell) => cells.keep[cell];
    const merged = (cell) => view === "kept" && cells.target && cells.target[cell] >= 0;
    const whole = !cells.rank;
    root.dataset.view = view;
    parts.veil.setAttribute("d", whole || view === "importance" ? "" : fill(cells, (cell) => !shown(cell) && !merged(cell)));
    parts.groups.setAttribute("d", view === "kept" && cells.target ? edges(cells, (cell) => cells.target[cell], (cell) => cells.target[cell] >= 0) : "");
    // Kept tokens that others were merged into stand alone; else lines go around regions.
    const region = cells.target && view === "kept" ? (cell) => (shown(cell) ? cell : -2) : (cell) => (shown(cell) ? 1 : null);
    const around = whole ? "" : edges(cells, region, shown);
    parts.halo.setAttribute("d", around);
    parts.edge.setAttribute("d", around);
    parts.latest.setAttribute("d", order && last > 0 ? fill(cells, (cell) => cells.rank[cell] === last) : "");
    const scored = view === "importance" && cells.score;
    const mixed = view === "kept" && cells.target;
    picture.canvas.hidden = !(scored || mixed || (order && cells.one_by_one));
    if (scored) paint(picture, (cell) => heat(cells, cell));
    else if (mixed) paint(picture, blend(picture));
    else if (order && cells.one_by_one) paint(picture, (cell) => (shown(cell) ? [...ramp(1 - cells.rank[cell] / cells.kept.length), 120] : null));
    point(picture);
  };

  const rest = (picture) => {
    const { cells, root } = picture;
    if (state.view === "importance" && !cells.score)
      return cells.rank ? `${root.dataset.label} gives no token a score by itself.` : "Nothing is dropped, so nothing is scored.";
    if (state.view === "importance") return `Scores from ${number(cells.low)} (dark) to ${number(cells.high)} (bright).`;
    if (state.view === "order" && !cells.rank) return "Nothing is dropped, so nothing is picked.";
    if (cells.small) return `And ${cells.small}.`;
    return cells.rank ? "Point at a token, or use the arrow keys, for its rank and score." : "All tokens are kept.";
  };

  const point = (picture) => {
    const { cells, parts, tip, caption } = picture;
    const here = state.cell !== null && state.cell.rows === cells.rows && state.cell.columns === cells.columns;
    parts.cursor.setAttribute("visibility", here ? "visible" : "hidden");
    tip.hidden = !here;
    if (!here) {
      caption.textContent = rest(picture);
      return;
    }
    const cell = state.cell.number;
    const row = Math.floor(cell / cells.columns), column = cell % cells.columns;
    parts.cursor.setAttribute("x", column);
    parts.cursor.setAttribute("y", row);
    const told = tell(cells, cell);
    caption.textContent = `Row ${row + 1}, column ${column + 1}: ${told}.`;
    tip.textContent = told;
    const box = picture.frame.getBoundingClientRect();
    const left = (box.width * (column + 0.5)) / cells.columns - tip.offsetWidth / 2;
    const above = (box.height * row) / cells.rows - tip.offsetHeight - 6;
    tip.style.left = `${Math.max(4, Math.min(box.width - tip.offsetWidth - 4, left))}px`;
    tip.style.top = `${above >= 4 ? above : (box.height * (row + 1)) / cells.rows + 6}px`;
  };

  const go = (cells, cell) => {
    state.cell = cell === null ? null : { rows: cells.rows, columns: cells.columns, number: cell };
    for (const picture of pictures.values()) point(picture);
  };

  const steps = () => Math.max(1, ...[...pictures.values()].map(({ cells }) => (cells.rank ? Math.max(...cells.rank) : 0)));

  const refresh = () => {
    const most = steps();
    for (const bar of document.querySelectorAll(".fv-toolbar")) {
      for (const radio of bar.querySelectorAll("input[type=radio]")) radio.checked = radio.value === state.view;
      bar.querySelector(".fv-player").hidden = state.view !== "order";
      const range = bar.querySelector("input[type=range]");
      range.max = most;
      range.value = Math.min(state.step, most);
      const said = `${range.value} of ${most} picks`;
      bar.querySelector("output").textContent = said;
      range.setAttribute("aria-valuetext", said);
      const button = bar.querySelector("button");
      button.dataset.playing = Boolean(state.timer);
      button.setAttribute("aria-label", state.timer ? "Pause" : "Play the order of picks");
    }
    for (const picture of pictures.values()) draw(picture);
  };

  const pause = () => {
    clearInterval(state.timer);
    state.timer = 0;
  };

  const play = () => {
    const most = steps();
    if (state.step >= most) state.step = 0;
    const stride = Math.max(1, Math.round(most / 60)); // about five seconds
    state.timer = setInterval(() => {
      state.step = Math.min(state.step + stride, steps());
      if (state.step >= steps()) pause();
      refresh();
    }, Math.max(60, Math.min(200, 5000 / most)));
  };

  const cellAt = (picture, event) => {
    const box = picture.frame.getBoundingClientRect();
    const across = Math.floor(((event.clientX - box.left) / box.width) * picture.cells.columns);
    const down = Math.floor(((event.clientY - box.top) / box.height) * picture.cells.rows);
    if (across < 0 || down < 0 || across >= picture.cells.columns || down >= picture.cells.rows) return null;
    return down * picture.cells.columns + across;
  };

  const pictureOf = (target) => {
    const root = target instanceof Element ? target.closest(".fv-picture") : null;
    return root ? pictures.get(root) : undefined;
  };

  for (const kind of ["pointermove", "pointerdown"]) {
    document.addEventListener(kind, (event) => {
      const picture = pictureOf(event.target);
      if (picture && event.target.closest(".fv-frame")) go(picture.cells, cellAt(picture, event));
      else if (state.cell !== null && !document.activeElement?.closest?.(".fv-picture")) go(null, null);
    });
  }

  document.addEventListener("focusin", (event) => {
    const picture = pictureOf(event.target);
    if (picture && event.target.matches(":focus-visible")) go(picture.cells, picture.cells.kept[0] ?? 0);
  });
  document.addEventListener("focusout", (event) => {
    if (pictureOf(event.target)) go(null, null);
  });

  document.addEventListener("keydown", (event) => {
    const picture = pictureOf(event.target);
    if (!picture || event.target !== picture.root) return;
    const { rows, columns, kept } = picture.cells;
    const cell = state.cell?.number ?? kept[0] ?? 0;
    const row = Math.floor(cell / columns), column = cell % columns;
    const next = {
      ArrowLeft: [row, Math.max(0, column - 1)],
      ArrowRight: [row, Math.min(columns - 1, column + 1)],
      ArrowUp: [Math.max(0, row - 1), column],
      ArrowDown: [Math.min(rows - 1, row + 1), column],
      Home: [row, 0],
      End: [row, columns - 1],
    }[event.key];
    if (event.key === "Escape") go(null, null);
    if (!next) return;
    event.preventDefault();
    go(picture.cells, next[0] * columns + next[1]);
  });

  document.addEventListener("input", (event) => {
    if (!(event.target instanceof Element) || !event.target.closest(".fv-toolbar")) return;
    if (event.target.type === "radio") {
      pause();
      state.view = event.target.value;
      state.step = Infinity;
    } else if (event.target.type === "range") {
      pause();
      state.step = Number(event.target.value);
    }
    refresh();
  });

  document.addEventListener("click", (event) => {
    const button = event.target instanceof Element ? event.target.closest(".fv-player button") : null;
    if (!button) return;
    if (state.timer) pause();
    else play();
    refresh();
  });

  // Gradio puts cards in place, and takes them away, as it likes.
  const look = () => {
    for (const root of [...pictures.keys()]) if (!root.isConnected) pictures.delete(root);
    let fresh = false;
    for (const root of document.querySelectorAll(".fv-picture[data-cells]")) {
      if (pictures.has(root)) continue;
      adopt(root);
      fresh = true;
    }
    for (const bar of document.querySelectorAll(".fv-toolbar:not([data-known])")) {
      bar.dataset.known = "";
      fresh = true;
      if (window.innerWidth <= NARROW) bar.scrollIntoView({ block: "start", behavior: "smooth" }); // answers lie below
    }
    for (const image of document.querySelectorAll("#fv-given img:not([alt]), #fv-given img[alt='']")) image.alt = "The picture that you gave";
    if (fresh) refresh();
  };
  let waiting = false;
  new MutationObserver(() => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      look();
    });
  }).observe(document.documentElement, { childList: true, subtree: true });
})();
