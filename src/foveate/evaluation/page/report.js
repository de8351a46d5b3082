// Puts the page together: the table, the curves, the families, and then the questions.

const summary = JSON.parse(document.getElementById("summary").textContent);
const state = {
  shown: new Set(summary.labels.filter((one) => one.strong && one.kind !== "reference").map((one) => one.name)),
  watchers: [],  // called when other methods are shown
};
const byId = (id) => document.getElementById(id);
const styleOf = new Map(summary.labels.map((one) => [one.name, one]));
const AXES = [
  ["tokens", "visual tokens", "visual tokens a question, mean over the layers"],
  ["ms", "time", "milliseconds a question"],
  ["gflops", "FLOPs", "GFLOPs a question, prefill"],
].filter(([key]) => summary.rows.every((row) => !row.keep || row[key] !== null));

byId("heading").textContent = `${summary.facts.model}, ${summary.facts.suite}`;
byId("preface").textContent = summary.preface;

function setUpTheme() {
  const button = byId("theme");
  const dark = () => {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };
  const label = () => (button.textContent = dark() ? "☀ light" : "☾ dark");
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
    label();
  });
  label();
}

function options(select, choices) {
  select.replaceChildren(...choices.map(([value, text]) => element("option", { value }, text)));
}

function setUpTable() {
  const last = summary.columns.length - 1;
  const known = (row, key) => row[key] !== null;
  const numbers = summary.keeps.map((keep) => summary.failing[keep] || "–").join(" / ");  // of questions
  const columns = [
    { name: "method", value: (row) => row.label.toLowerCase() },
    { name: "keep", value: (row) => -keepRank(row.keep) },
    { name: "tokens", value: (row) => row.tokens, text: (row) => row.tokens.toFixed(1) },
    { name: "macro", interval: (row) => row.scores[last], always: true },
    ...summary.columns.slice(0, last).map((name, n) => ({ name, interval: (row) => row.scores[n] })),
    { name: "of unpruned", interval: (row) => row.kept, always: true },
    { name: `where down-sampling fails (${numbers})`, interval: failing, always: true, without: "–" },
    ...(summary.reference
      ? [{ name: `minus ${summary.reference}`, interval: (row) => row.minus, always: true, signed: true }] : []),
    { name: "GFLOPs", value: (row) => row.gflops, text: (row) => figure(row.gflops) },
    { name: "KV kB", value: (row) => row.kv, text: (row) => figure(row.kv) },
    ...(summary.rows.some((row) => known(row, "ms"))
      ? [{ name: "ms", value: (row) => row.ms, text: (row) => (row.ms === null ? "" : row.ms.toFixed(2)) }] : []),
  ];
  let sorted = { column: 3, down: true };
  options(byId("table-keep"), [["", "all"], ...summary.keeps.map((keep) => [keep, keep])]);
  byId("table-keep").value = summary.keeps.at(-1) ?? "";

  // A row without a budget, such as the unpruned one, is measured by the questions of the budget that is looked at.
  function failing(row) {
    return row.failing[row.keep || byId("table-keep").value] ?? null;
  }

  function keepRank(keep) {
    return keep ? summary.keeps.length - summary.keeps.indexOf(keep) : summary.keeps.length + 1;
  }

  function draw() {
    const keep = byId("table-keep").value, intervals = byId("table-interval").value;
    const rows = summary.rows.filter((row) => !keep || !row.keep || row.keep === keep);
    const column = columns[sorted.column];
    const value = (row) => (column.interval ? column.interval(row)?.[0] ?? null : column.value(row));
    rows.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      return (x < y ? -1 : x > y ? 1 : 0) * (sorted.down ? -1 : 1);
    });
    const head = columns.map((one, n) => {
      const on = n === sorted.column;
      const button = element("button", { type: "button" }, one.name, on ? (sorted.down ? " ▾" : " ▴") : "");
      button.addEventListener("click", () => {
        sorted = { column: n, down: on ? !sorted.down : n !== 0 };
        draw();
        byId("table").querySelectorAll("thead button")[n].focus();
      });
      return element("th", { scope: "col", "aria-sort": on ? (sorted.down ? "descending" : "ascending") : "none" }, button);
    });
    const body = rows.map((row) => {
      const style = styleOf.get(row.label);
      const name = row.seeds > 1 ? `${row.label} (${row.seeds} seeds)` : row.label;
      return element("tr", { class: style.kind === "method" ? null : "aside", title: style.about || null },
        element("th", { scope: "row" }, swatch(style), name),
        element("td", {}, row.keep || "–"),
        ...columns.slice(2).map((one) => cell(one, row, one.always || intervals === "all")));
    });
    byId("table").replaceChildren(element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body));
  }

  function cell(column, row, interval) {
    if (!column.interval) return element("td", {}, column.text(row));
    const found = column.interval(row);
    if (!found || found[0] === null) return element("td", {}, column.without ?? "");
    const sign = (one) => (column.signed && one > 0 ? "+" : "") + one.toFixed(1);
    const sure = column.signed && found[1] !== null && (found[1] > 0 || found[2] < 0);
    return element("td", { class: sure ? "sure" : null }, sign(found[0]),
      interval && found[1] !== null
        ? element("span", { class: "interval" }, `[${sign(found[1])}, ${sign(found[2])}]`) : null);
  }

  byId("table-keep").addEventListener("change", draw);
  byId("table-interval").addEventListener("change", draw);
  draw();
}

function seriesOf(column, across) {
  const at = summary.columns.indexOf(column);
  return summary.labels.filter((one) => one.kind !== "reference" && state.shown.has(one.name)).map((one) => {
    const points = summary.rows.filter((row) => row.label === one.name && row.keep && row.scores[at][0] !== null)
      .map((row) => {
        const [y, low, high] = row.scores[at];
        const range = low === null ? "" : ` [${low.toFixed(1)}, ${high.toFixed(1)}]`;
        const time = row.ms === null ? "" : `, ${row.ms.toFixed(2)} ms`;
        const said = `${one.name} at ${row.keep}: ${y.toFixed(1)} %${range} of ${column}; ${row.tokens.toFixed(1)} `
          + `visual tokens, ${figure(row.gflops)} GFLOPs${time}`;
        return { x: across(row), y, low, high, said };
      });
    points.sort((a, b) => a.x - b.x);
    return { ...one, points };
  }).filter((one) => one.points.length);
}

function levelsOf(column) {
  const at = summary.columns.indexOf(column);
  return summary.rows.filter((row) => !row.keep && row.scores[at][0] !== null)
    .map((row) => ({ name: row.label, y: row.scores[at][0] }));
}

function setUpCurves() {
  options(byId("curve-column"), [...summary.columns].reverse().map((name) => [name, name]));
  options(byId("curve-axis"), AXES.map(([key, name]) => [key, name]));
  const draw = () => {
    const column = byId("curve-column").value, key = byId("curve-axis").value;
    const series = seriesOf(column, (row) => row[key]);
    const xs = series.flatMap((one) => one.points.map((point) => point.x));
    const wide = Math.max(340, Math.min(byId("curve").clientWidth - 14, 1220));
    const height = Math.max(wide < 600 ? 380 : 460, 14.5 * series.length + 70);
    byId("curve").replaceChildren(drawChart({
      series, levels: levelsOf(column), xName: AXES.find(([name]) => name === key)[2],
      logarithmic: Math.min(...xs) > 0 && Math.max(...xs) > 4 * Math.min(...xs),
      width: wide, height, intervals: byId("curve-intervals").checked,
      label: `Right answers in ${column} against ${key}; arrow keys go from point to point`,
      tell: (said) => (byId("point").textContent = said),
    }));
  };
  for (const id of ["curve-column", "curve-axis", "curve-intervals"]) byId(id).addEventListener("change", draw);
  let wide = innerWidth;
  addEventListener("resize", () => innerWidth !== wide && ((wide = innerWidth), draw()));
  state.watchers.push(draw);
  draw();
}

function setUpMethods() {
  const box = byId("methods"), chosen = summary.labels.filter((one) => one.kind !== "reference");
  const boxes = chosen.map((one) => {
    const input = element("input", { type: "checkbox", checked: state.shown.has(one.name) });
    input.addEventListener("change", () => {
      if (input.checked) state.shown.add(one.name);
      else state.shown.delete(one.name);
      changed();
    });
    box.append(element("label", { title: one.about || null }, input, swatch(one), one.name));
    return [one, input];
  });
  const changed = () => state.watchers.forEach((watcher) => watcher());
  for (const button of document.querySelectorAll("[data-choose]")) {
    button.addEventListener("click", () => {
      for (const [one, input] of boxes) {
        input.checked = button.dataset.choose === "all" || (button.dataset.choose === "strong" && one.strong);
        if (input.checked) state.shown.add(one.name);
        else state.shown.delete(one.name);
      }
      changed();
    });
  }
}

function setUpFamilies() {
  const shown = [...summary.keeps].reverse();
  const families = summary.columns.slice(0, -1);
  if (families.length < 2) {
    byId("families-section").hidden = true;
    document.querySelector('nav a[href="#families-section"]').hidden = true;
    return;
  }
  let seen = false;
  const draw = () => {
    if (!seen) return;
    byId("families").replaceChildren(...families.map((family) => element("figure", {},
      element("figcaption", {}, family),
      drawChart({ series: seriesOf(family, (row) => shown.indexOf(row.keep)), levels: levelsOf(family), names: shown,
        width: 380, height: Math.max(250, 12.5 * state.shown.size + 45), intervals: false, small: true,
        label: `Right answers in ${family} at each budget` }))));
  };
  state.watchers.push(draw);
  new IntersectionObserver((entries, observer) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    seen = true;
    draw();
  }, { rootMargin: "400px" }).observe(byId("families"));
}

function setUpNotes() {
  const notes = [];
  const facts = Object.entries(summary.facts).map(([name, value]) => `${name.replaceAll("_", " ")} ${value}`).join(", ");
  notes.push(["Evaluated", facts + (summary.machine ? `; measured on ${summary.machine}` : "")], ["Costs", summary.costs]);
  const numbers = summary.keeps.map((keep) => `${summary.failing[keep] || "none"} at ${keep}`).join(", ");
  notes.push(["Where down-sampling fails", `${summary.failing_note} Questions: ${numbers}.`]);
  for (const one of summary.labels) if (one.about) notes.push([one.name, one.about]);
  for (const one of summary.refused) notes.push([`Could not run: ${one.method} ${one.keep}`, one.why]);
  for (const one of summary.left_out) notes.push([`${one.what === "failed" ? "Failed" : "Skipped"}: ${one.where}`, one.why]);
  byId("notes").append(element("dl", {}, ...notes.flatMap(([term, text]) => [element("dt", {}, term), element("dd", {}, text)])));
}

setUpTheme();
setUpTable();
setUpMethods();
setUpCurves();
setUpFamilies();
setUpNotes();
// Pictures and masks come behind this script, so that all of the above is drawn before they are read.
document.addEventListener("DOMContentLoaded", () => {
  setUpQuestions(summary, state);
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
});
