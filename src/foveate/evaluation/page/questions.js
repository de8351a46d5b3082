// The questions: filtered, and drawn a few at a time, when they come into sight.

const DRAWN_AT_ONCE = 12;

// The bits of "14x14x1:ff..": {rows, columns, frames, bits}.
function unpackMask(text) {
  const [size, digits] = text.split(":");
  const [rows, columns, frames] = size.split("x").map(Number);
  const bits = new Uint8Array(rows * columns * frames);
  for (let n = 0; n < bits.length; n++) bits[n] = (parseInt(digits[n >> 2], 16) >> (3 - (n & 3))) & 1;
  return { rows, columns, frames, bits };
}

// Dropped cells under a veil, and a line, dark and light, around the kept ones.
function drawMask({ rows, columns, bits }, frame) {
  const kept = (row, column) => row >= 0 && row < rows && column >= 0 && column < columns
    && bits[(frame * rows + row) * columns + column];
  let veil = "", edges = "";
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      if (!kept(row, column)) {
        veil += `M${column} ${row}h1v1h-1Z`;
        continue;
      }
      if (!kept(row - 1, column)) edges += `M${column} ${row}h1`;
      if (!kept(row + 1, column)) edges += `M${column} ${row + 1}h1`;
      if (!kept(row, column - 1)) edges += `M${column} ${row}v1`;
      if (!kept(row, column + 1)) edges += `M${column + 1} ${row}v1`;
    }
  }
  const thick = Math.min(4, Math.max(1.8, 320 / columns / 5));
  return shape("svg", { style: `--thick:${thick.toFixed(1)}px`, viewBox: `0 0 ${columns} ${rows}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    shape("path", { class: "veil", d: veil, "shape-rendering": "crispEdges" }),
    shape("path", { class: "edge-dark", d: edges }), shape("path", { class: "edge-light", d: edges }));
}

function setUpQuestions(summary, state) {
  const data = JSON.parse(document.getElementById("questions").textContent);
  const byId = (id) => document.getElementById(id);
  let masks = null;
  const maskOf = (run, place) => {
    masks ??= JSON.parse(byId("masks").textContent);
    return masks[run]?.[place] ?? [];
  };
  const styles = new Map(summary.labels.map((one) => [one.name, one]));
  const runOf = new Map();
  data.runs.forEach((run, n) => runOf.set(`${run.label} ${run.seed ?? ""} ${run.keep}`, n));
  const find = (label, keep) => data.runs.findIndex((run) => run.label === label && run.keep === keep);
  const full = find("unpruned", ""), blind = find("blind", "");
  const rows = [];  // of a table of answers: each label, and each seed
  for (const run of data.runs) {
    if (run.keep && !rows.some((row) => row.label === run.label && row.seed === run.seed)) {
      rows.push({ label: run.label, seed: run.seed });
    }
  }
  const order = new Map(summary.labels.map((one, n) => [one.name, n]));
  rows.sort((a, b) => order.get(a.label) - order.get(b.label) || a.seed - b.seed);
  const several = new Set(rows.filter((row) => row.seed).map((row) => row.label));
  const nameOfRow = ({ label, seed }) => (several.has(label) ? `${label} #${seed}` : label);
  const labels = [...new Set(rows.map((row) => row.label))];
  const right = (run, place) => run >= 0 && data.runs[run].right[place] === "1";

  const options = (select, choices, chosen) => {
    select.replaceChildren(...choices.map(([value, text]) =>
      element("option", { value, selected: value === chosen }, text)));
  };
  options(byId("filter-method"), [["", "any method shown"], ...labels.map((label) => [label, label])],
    summary.reference ?? "");
  options(byId("filter-keep"), [["", "any budget"], ...summary.keeps.map((keep) => [keep, keep])],
    summary.keeps.at(-1));
  options(byId("filter-family"), [["", "any"], ...data.families.map((family, n) => [String(n), family])], "");

  let found = [], drawn = 0;
  const list = byId("list"), more = byId("more");

  function judged() {
    const method = byId("filter-method").value, keep = byId("filter-keep").value;
    return data.runs.map((run, n) => n).filter((n) => {
      const run = data.runs[n];
      if (!run.keep || (keep && run.keep !== keep)) return false;
      if (method) return run.label === method;
      return styles.get(run.label).kind === "method" && state.shown.has(run.label);
    });
  }

  function filter() {
    const status = byId("filter-status").value, family = byId("filter-family").value;
    const words = byId("filter-text").value.toLowerCase().split(/\s+/).filter(Boolean);
    const runs = judged();
    const texts = data.texts.map((text) => text.toLowerCase());
    found = [];
    data.samples.forEach((sample, place) => {
      if (family !== "" && String(sample.family) !== family) return;
      const before = right(full, place);
      if (status === "lost" && !(before && runs.some((run) => !right(run, place)))) return;
      if (status === "gained" && !(!before && runs.some((run) => right(run, place)))) return;
      if (status === "wrong" && before) return;
      const said = [sample.id.toLowerCase(), texts[sample.question], ...sample.truth.map((n) => texts[n]),
        ...runs.map((run) => texts[data.runs[run].answers[place]])];
      if (!words.every((word) => said.some((text) => text.includes(word)))) return;
      found.push(place);
    });
    drawn = 0;
    list.replaceChildren();
    const all = data.all.toLocaleString("en");
    const rest = data.all > data.samples.length ? ` (the file holds ${data.samples.length.toLocaleString("en")})` : "";
    byId("count").textContent = `${found.length.toLocaleString("en")} of ${all} questions${rest}`;
    drawMore();
  }

  function drawMore() {
    const next = found.slice(drawn, drawn + DRAWN_AT_ONCE);
    list.append(...next.map(card));
    drawn += next.length;
    more.hidden = drawn >= found.length;
  }

  function card(place) {
    const sample = data.samples[place];
    const method = byId("filter-method").value || summary.reference || labels[0];
    const keep = byId("filter-keep").value || summary.keeps.at(-1);
    const pictures = element("div", { class: "pictures" });
    const buttons = new Map();
    const show = (run) => {
      for (const [n, button] of buttons) button.setAttribute("aria-pressed", String(n === run));
      drawPictures(pictures, sample, place, run);
    };
    const answer = (run) => {
      const text = data.texts[data.runs[run].answers[place]] || "(nothing)";
      const good = right(run, place);
      const button = element("button", { type: "button", class: `answer ${good ? "right" : "wrong"}`, title: text,
        "aria-pressed": "false", "aria-label": `${nameOf(run)}: ${text}, ${good ? "right" : "wrong"}` },
        `${good ? "✓" : "✗"} ${text}`);
      button.addEventListener("click", () => show(run));
      buttons.set(run, button);
      return button;
    };
    const every = byId("filter-every").checked;
    const chosen = rows.filter((row) => every || state.shown.has(row.label) || row.label === method);
    chosen.sort((a, b) => (b.label === method) - (a.label === method));
    const table = element("table", {},
      element("thead", {}, element("tr", {}, element("th", {}), ...summary.keeps.map((one) => element("th", { scope: "col" }, one)))),
      element("tbody", {}, ...chosen.map((row) => element("tr", {},
        element("th", { scope: "row" }, swatch(styles.get(row.label)), nameOfRow(row)),
        ...summary.keeps.map((one) => {
          const run = runOf.get(`${row.label} ${row.seed ?? ""} ${one}`);
          return element("td", {}, run === undefined ? "" : answer(run));
        })))));
    const references = element("p", { class: "controls" },
      ...[full, blind].filter((run) => run >= 0).map((run) =>
        element("label", {}, data.runs[run].label, answer(run))));
    const truth = sample.truth.map((n) => `“${data.texts[n]}”`).join(" or ");
    const made = element("article", { class: "card", "data-place": place },
      pictures,
      element("div", { class: "body" },
        element("h3", {}, data.texts[sample.question]),
        element("p", { class: "meta" }, `expected ${truth} · ${data.families[sample.family]} · ${sample.id}`),
        references, element("div", { class: "answers" }, table)));
    const first = find(method, keep);
    show(buttons.has(first) ? first : full);
    return made;
  }

  function nameOf(run) {
    return [nameOfRow(data.runs[run]), data.runs[run].keep].filter(Boolean).join(", ");
  }

  function drawPictures(box, sample, place, run) {
    const known = run >= 0 ? maskOf(run, place).map(unpackMask) : [];
    const one = known.length === 1 && sample.pictures.length > 1;  // a clip: several frames have one mask
    box.classList.toggle("several", sample.pictures.length > 2);
    box.replaceChildren(...sample.pictures.map((number, n) => {
      const mask = one ? known[0] : known[n];
      const image = element("img", { src: byId(`picture-${number}`).textContent, loading: "lazy",
        alt: sample.pictures.length > 1 ? `Picture ${n + 1} of ${sample.pictures.length}` : "The picture asked about" });
      const frame = one ? Math.min(Math.floor((n * mask.frames) / sample.pictures.length), mask.frames - 1) : 0;
      const all = mask && mask.bits.every(Boolean);
      return element("div", { class: "frame" }, image, mask && !all ? drawMask(mask, frame) : null);
    }));
    if (!sample.pictures.length) box.append(element("p", { class: "hint" }, "The picture is not in this file."));
    const tokens = known.reduce((sum, mask) => sum + mask.bits.length, 0);
    const kept = known.reduce((sum, mask) => sum + mask.bits.reduce((all, bit) => all + bit, 0), 0);
    const said = tokens ? `${nameOf(run)}: ${kept} of ${tokens} tokens` : `${nameOf(run)}: kept tokens not recorded`;
    box.append(element("p", { class: "hint", "data-run": nameOf(run) },
      run === blind ? "blind: the model saw no picture" : said));
  }

  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["filter-status", "filter-method", "filter-keep", "filter-family", "filter-every"]) {
    byId(id).addEventListener("change", filter);
  }
  let waiting = 0;
  byId("filter-text").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(filter, 120);
  });
  more.addEventListener("click", drawMore);
  new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting) && drawn < found.length && drawn) drawMore();
  }, { rootMargin: "600px" }).observe(more);
  state.watchers.push(filter);
  filter();
}
