(() => {
  "use strict";
  const byId = (id) => document.getElementById(id);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const report = JSON.parse(byId("report").textContent);
  const boxes = all(".side .chip input");
  const arms = boxes.map((box) => box.value);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const views = new Map();
  let theme = dark.matches ? "dark" : "light";
  let hidden = [];
  let metric = report.metric;

  // Columns as Python packs them: numbers as they are, text as codes into its distinct words.
  function unpack({ length, columns }) {
    return Array.from({ length }, (_, i) => {
      const row = {};
      for (const [name, column] of Object.entries(columns))
        row[name] = column.words ? column.words[column.codes[i]] : column[i];
      return row;
    });
  }

  function metricOf(figure) {
    const nearest = [metric, `recall@${metric.split("@")[1]}`, report.metric];
    return nearest.find((name) => figure.metrics.includes(name)) ?? figure.metrics[0];
  }

  function signalsOf(figure) {
    const signals = { hidden: figure.groups ? [...figure.off] : hidden };
    if (figure.metrics.length) signals.metric = metricOf(figure);
    if (figure.focus) signals.focus = figure.focus;
    return signals;
  }

  function specOf(figure) {
    const spec = structuredClone(figure.variants[figure.variant]);
    const signals = signalsOf(figure);
    for (const param of spec.params) if (param.name in signals) param.value = signals[param.name];
    return { ...spec, datasets: { rows: unpack(figure.rows) } };
  }

  async function draw(figure) {
    const drawing = (figure.drawing = (figure.drawing ?? 0) + 1);
    const config = structuredClone(report.config[theme]);
    config.legend.disable = true;
    const result = await vegaEmbed(
      byId(`chart-${figure.name}`),
      { ...specOf(figure), width: "container", autosize: { type: "fit-x", contains: "padding" } },
      { actions: false, renderer: figure.renderer, config, tooltip: { theme }, logLevel: 1 },
    );
    if (drawing !== figure.drawing) return result.finalize();
    views.get(figure.name)?.finalize();
    views.set(figure.name, result);
  }

  async function refresh(figure) {
    const view = views.get(figure.name)?.view;
    if (!view) return;
    for (const [name, value] of Object.entries(signalsOf(figure))) view.signal(name, value);
    await view.runAsync();
  }

  const drawAll = () => Promise.all(report.figures.map(draw)).then(() => {
    document.documentElement.dataset.drawn = theme;
  });
  const refreshAll = () => Promise.all(report.figures.map(refresh));

  function filter() {
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const matches = (text) => words.every((word) => text.includes(word));
    const named = arms.filter((arm) => matches(arm.toLowerCase()));
    const byArm = words.length > 0 && arms.length > 1 && named.length > 0;
    const checked = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
    hidden = arms.filter((arm) => !checked.has(arm) || (byArm && !named.includes(arm)));
    const gone = new Set(hidden);
    for (const box of boxes) box.parentElement.classList.toggle("out", gone.has(box.value));
    for (const cell of all("[data-arm]:not([data-row])")) cell.hidden = gone.has(cell.dataset.arm);
    let shown = 0;
    const rows = all("[data-row]");
    for (const row of rows) {
      row.searched ??= row.textContent.toLowerCase();
      const { arm } = row.dataset;
      const found = matches(row.searched);
      row.hidden = arm === undefined ? !(found || (byArm && row.closest(".by-arm")))
        : gone.has(arm) || !(byArm || found);
      shown += !row.hidden;
    }
    const many = rows.length.toLocaleString("en");
    byId("status").value = !words.length ? ""
      : shown ? `${shown.toLocaleString("en")} of ${many} rows` : "nothing matches";
    if (words.length) for (const one of all("details:not([open])"))
      one.open = all("[data-row]", one).some((row) => !row.hidden) && (one.searched = true);
    else for (const one of all("details[open]")) if (one.searched) one.open = one.searched = false;
    return refreshAll();
  }

  function sortBy(head) {
    const table = head.closest("table");
    const column = [...head.parentElement.children].indexOf(head);
    const isText = "text" in head.dataset;
    const keyOf = (row) => {
      const text = row.children[column].textContent.trim();
      return isText ? text.toLowerCase() : parseFloat(text.replace("\u2212", "-").replace(/[,<+]/g, ""));
    };
    const rows = all("tbody tr", table).map((row) => [keyOf(row), row]);
    const [first, other] = isText ? ["ascending", "descending"] : ["descending", "ascending"];
    const order = head.getAttribute("aria-sort") === first ? other : first;
    const sign = order === "ascending" ? 1 : -1;
    const empty = (key) => key === "" || Number.isNaN(key);
    rows.sort(([a], [b]) => empty(a) - empty(b) || sign * (a > b ? 1 : a < b ? -1 : 0));
    for (const one of all("th[aria-sort]", table)) one.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    table.tBodies[0].append(...rows.map(([, row]) => row));
  }

  async function save(figure, kind) {
    const config = { ...report.config.light, background: "white" };
    const apart = document.createElement("div");
    const { view, finalize } = await vegaEmbed(apart, specOf(figure), { actions: false, config, logLevel: 1 });
    const link = document.createElement("a");
    link.href = await view.toImageURL(kind, kind === "png" ? 3 : 1);
    link.download = `${figure.name}.${kind}`;
    link.click();
    finalize();
  }

  function groupChips(figure) {
    const chips = byId(`chips-${figure.name}`);
    chips.replaceChildren(...figure.groups[figure.variant].map((group, i) => {
      const label = document.createElement("label");
      const box = document.createElement("input");
      label.className = group === "other" ? "chip" : `chip c${i}`;
      box.type = "checkbox";
      box.checked = true;
      box.addEventListener("change", () => {
        figure.off[box.checked ? "delete" : "add"](group);
        label.classList.toggle("out", !box.checked);
        refresh(figure);
      });
      label.append(box, group);
      return label;
    }));
  }

  function setTheme(next) {
    theme = next;
    document.documentElement.style.colorScheme = theme;
    byId("theme").textContent = theme === "dark" ? "Light theme" : "Dark theme";
    return drawAll();
  }

  function neighbours(near) {
    const { titles, counts, ids, similarities, k } = near;
    const map = report.figures.find((figure) => figure.name === "map");
    const input = byId("item");
    const lowered = titles.map((title) => title.toLowerCase());
    const cell = (text) => {
      const made = document.createElement("td");
      made.textContent = text;
      return made;
    };
    function choose(item) {
      const around = ids.slice(item * k, item * k + k);
      byId("near-title").textContent = titles[item];
      byId("near-rows").replaceChildren(...around.map((other, i) => {
        const row = document.createElement("tr");
        const title = cell(titles[other]);
        title.className = "wrap";
        const cosine = similarities[item * k + i] / 1000;
        row.append(title, cell(cosine.toFixed(3)), cell(counts[other].toLocaleString("en")));
        return row;
      }));
      for (const button of all("#items button"))
        button.setAttribute("aria-pressed", String(Number(button.value) === item));
      if (map) {
        map.focus = [item, ...around];
        refresh(map);
      }
    }
    function list() {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      const found = [];
      for (let i = 0; i < titles.length && found.length < 40; i++)
        if (words.every((word) => lowered[i].includes(word))) found.push(i);
      byId("items").replaceChildren(...found.map((item) => {
        const line = document.createElement("li");
        const button = document.createElement("button");
        button.type = "button";
        button.value = item;
        button.textContent = titles[item];
        button.addEventListener("click", () => choose(item));
        line.append(button);
        return line;
      }));
      if (found.length) choose(found[0]);
    }
    input.addEventListener("input", list);
    list();
  }

  for (const figure of report.figures) {
    figure.variant = Object.keys(figure.variants)[0];
    figure.off = new Set();
    if (figure.groups) groupChips(figure);
    const element = byId(`figure-${figure.name}`);
    element.querySelector("select")?.addEventListener("change", (event) => {
      figure.variant = event.target.value;
      figure.off.clear();
      if (figure.groups) groupChips(figure);
      draw(figure);
    });
    for (const button of all("button[data-save]", element))
      button.addEventListener("click", () => save(figure, button.dataset.save));
  }
  for (const head of all("th button")) head.addEventListener("click", () => sortBy(head.parentElement));
  for (const box of boxes) box.addEventListener("change", filter);
  byId("search").addEventListener("input", filter);
  byId("search").form.addEventListener("submit", (event) => event.preventDefault());
  byId("metric").addEventListener("change", (event) => {
    metric = event.target.value;
    refreshAll();
  });
  byId("theme").addEventListener("click", () => setTheme(theme === "dark" ? "light" : "dark"));
  dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
  document.addEventListener("keydown", (event) => {
    const typing = /INPUT|SELECT|TEXTAREA/.test(document.activeElement.tagName);
    if (event.key === "/" && !typing) {
      event.preventDefault();
      byId("search").focus();
    } else if (event.key === "Escape" && document.activeElement === byId("search")) {
      byId("search").value = "";
      filter();
    }
  });
  if (report.near) neighbours(report.near);
  setTheme(theme);
})();
