"use strict";
{
  const find = (id) => document.getElementById(id);
  const read = (id) => JSON.parse(find(id).textContent);
  const make = (tag, text, name) => {
    const one = document.createElement(tag);
    if (text !== undefined) one.textContent = text;
    if (name) one.className = name;
    return one;
  };
  const many = find("rows") !== null;

  // Charts: the marks that the page's maker drew too, as elements.
  const space = document.querySelector("svg").namespaceURI;
  const element = (tag, values, text) => {
    const one = document.createElementNS(space, tag);
    for (const [name, value] of Object.entries(values)) one.setAttribute(name, value);
    if (text !== undefined) one.textContent = text;
    return one;
  };
  const mark = ([kind, name, ...values]) => {
    if (kind === "p") return element("path", { class: name, d: values[0] });
    if (kind === "c") return element("circle", { class: name, cx: values[0], cy: values[1], r: values[2] });
    return element("text", { class: name, x: values[0], y: values[1] }, values[2]);
  };
  const draw = ([width, height, label, frame, marks]) => {
    const svg = element("svg", {
      class: "cw", role: "img", "aria-label": label, width, height, viewBox: `0 0 ${width} ${height}`,
    });
    if (typeof frame === "number") svg.append(element("use", { href: `#f${frame}` }));
    else svg.append(...frame.map(mark));
    svg.append(...marks.map(mark));
    return svg;
  };

  let pictures = null;
  const sources = () => {
    if (pictures === null) pictures = read("pictures");
    return pictures;
  };

  // The part of a category: there already, or drawn from its record.
  const drawn = new Map();
  const record = (number) => {
    const first = find("parts-0");
    const size = Number(first.dataset.size);
    const chunk = Math.floor(number / size);
    if (!drawn.has(chunk)) drawn.set(chunk, find(`parts-${chunk}`) ? read(`parts-${chunk}`) : []);
    return drawn.get(chunk)[number - chunk * size];
  };
  const build = (number) => {
    const found = record(number);
    if (!found) return null;
    const part = make("details", undefined, "part");
    part.id = `c-${number}`;
    const summary = make("summary");
    summary.append(make("strong", found.name), " ", make("span", found.summary, "soft"));
    const facts = make("dl", undefined, "values");
    for (const [name, text] of found.facts) facts.append(make("dt", name), make("dd", text));
    const charts = make("div", undefined, "charts");
    for (const chart of found.charts) {
      const figure = make("figure");
      figure.append(make("figcaption", chart[2].split(". ")[0].replace(/\?.*/, "?")), draw(chart));
      charts.append(figure);
    }
    const images = make("ul", undefined, "pictures");
    for (const [name, alternative, lines, place] of found.pictures) {
      const item = make("li");
      if (place !== null) {
        const image = make("img");
        image.alt = alternative;
        image.src = sources()[place];
        item.append(image);
      }
      item.append(make("span", name, "name"), ...lines.map((line) => make("span", line)));
      images.append(item);
    }
    const moved = found.pictures.length ? [make("h3", found.title), images] : [];
    const back = make("p");
    const link = make("a", "Back to all categories");
    link.href = "#categories";
    back.append(link);
    part.append(summary, facts, ...found.texts.map((text) => make("p", text, "soft")), charts, ...moved, back);
    find("parts").prepend(part);
    return part;
  };
  const open = (hash) => {
    const match = /^#c-(\d+)$/.exec(hash);
    if (!match) return;
    const part = find(hash.slice(1)) || (many ? build(Number(match[1])) : null);
    if (!part) return;
    part.open = true;
    part.scrollIntoView();
    part.firstElementChild.focus({ preventScroll: true });
  };
  addEventListener("hashchange", () => open(location.hash));
  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#c-"]');
    if (link && link.hash === location.hash) open(link.hash);
  });

  // The table: sorted, filtered; of a long one as many rows as are asked for.
  const table = document.querySelector("table.categories");
  const setUp = () => {
    const body = table.tBodies[0];
    const heads = Array.from(table.tHead.rows[0].cells);
    const step = 100;
    let limit = step;
    const rowOf = (item) => {
      if (item.row) return item.row;
      const row = make("tr", undefined, item.outcome);
      item.texts.forEach((text, i) => {
        if (i === 0) {
          const head = make("th");
          head.scope = "row";
          const link = make("a", text);
          link.href = `#c-${item.number}`;
          head.append(link);
          row.append(head);
          return;
        }
        row.append(make("td", text, kinds[i]));
      });
      item.row = row;
      return row;
    };
    const kinds = heads.map((head, i) => (body.rows[0] ? body.rows[0].cells[i].className : ""));
    const fromRow = (row) => ({
      row,
      number: Number(row.dataset.number),
      group: row.dataset.group,
      keys: Array.from(row.cells, (cell, i) => {
        const key = i ? cell.dataset.key : cell.textContent;
        return heads[i].dataset.kind === "number" ? (key === "" ? null : Number(key)) : key;
      }),
    });
    const fromRecord = ([number, outcome, group, texts, keys]) => ({
      number, outcome, group, texts,
      keys: keys.map((key, i) => (heads[i].dataset.kind === "number" && key === "" ? null : key)),
    });
    let items = many ? read("rows").map(fromRecord) : Array.from(body.rows, fromRow);
    const total = items.length;
    for (const item of items) item.folded = String(item.keys[0]).toLowerCase();
    const name = find("filter");
    const group = find("group");
    const show = () => {
      const wanted = name.value.trim().toLowerCase();
      const kept = items.filter((item) =>
        item.folded.includes(wanted) && (!group.value || item.group === group.value));
      body.replaceChildren(...kept.slice(0, limit).map(rowOf));
      const shown = Math.min(limit, kept.length);
      const [n, found, all] = [shown, kept.length, total].map((one) => one.toLocaleString("en"));
      const among = kept.length < total ? `${found} of ${all} categories` : `${all} categories`;
      find("count").textContent = shown < kept.length ? `the first ${n} of ${among}` : among;
      find("more").hidden = shown === kept.length;
    };
    const sort = (head, column) => {
      performance.mark("catwise-sort-start");
      const numeric = head.dataset.kind === "number";
      const now = head.getAttribute("aria-sort");
      const up = now ? now === "descending" : !numeric;
      const collator = new Intl.Collator("en");
      const compare = (a, b) => (numeric ? a - b : collator.compare(a, b));
      items.sort((first, second) => {
        const [a, b] = [first.keys[column], second.keys[column]];
        if (a === null || b === null) {
          return (a === null) - (b === null) || first.number - second.number;
        }
        return (up ? compare(a, b) : compare(b, a)) || first.number - second.number;
      });
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      limit = step;
      show();
      table.getBoundingClientRect();
      performance.measure("catwise-sort", "catwise-sort-start");
    };
    heads.forEach((head, column) => {
      const button = make("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => sort(head, column));
    });
    name.addEventListener("input", show);
    group.addEventListener("change", show);
    find("more").addEventListener("click", () => {
      limit += step;
      show();
    });
    addEventListener("beforeprint", () => {
      limit = Infinity;
      show();
    });
    addEventListener("afterprint", () => {
      limit = step;
      show();
    });
    document.querySelector(".tools").hidden = false;
    show();
  };
  if (table) setUp();
  open(location.hash);

  // What is folded is printed.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = Array.from(document.querySelectorAll("details:not([open])"));
    closed.forEach((one) => { one.open = true; });
  });
  addEventListener("afterprint", () => closed.forEach((one) => { one.open = false; }));
  performance.mark("catwise-ready");
}
