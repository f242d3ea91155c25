"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);

  // --- tables ---------------------------------------------------------------------------------------
  const valueOf = (cell) => {
    const text = cell === undefined ? "" : cell.dataset.value;
    if (text === undefined || text === "") return null;
    const number = text === "inf" ? Infinity : Number(text);
    return Number.isNaN(number) ? text : number;
  };
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), "en", { numeric: true });
  };
  const sortBy = (table, column, descending) => {
    const body = table.tBodies[0];
    const rows = Array.from(body.rows, (row) => [valueOf(row.cells[column]) ?? row.cells[column].textContent, row]);
    const empty = (value) => value === "" || value === "–";
    rows.sort(([a], [b]) => {
      if (empty(a) || empty(b)) return empty(a) - empty(b);
      return descending ? compare(b, a) : compare(a, b);
    });
    body.append(...rows.map(([, row]) => row));
  };
  document.querySelectorAll(".sort").forEach((button) => {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const descending = head.getAttribute("aria-sort") === "ascending";
      head.parentElement.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sortBy(button.closest("table"), Number(button.dataset.column), descending);
    });
  });
  document.querySelectorAll(".filter").forEach((input) => {
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      const rows = input.closest("article").querySelectorAll("tbody tr");
      rows.forEach((row) => {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      });
    });
  });
  const copy = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      return done;
    }
  };
  document.querySelectorAll(".copy").forEach((button) => {
    button.addEventListener("click", async () => {
      const article = button.closest("article");
      const done = await copy(data[button.dataset.form][article.dataset.table]);
      article.querySelector(".copied").textContent = done ? "copied" : "the browser refused to copy";
    });
  });

  // --- figures --------------------------------------------------------------------------------------
  const colours = () => {
    const style = getComputedStyle(document.documentElement);
    return { front: style.getPropertyValue("--front").trim(), line: style.getPropertyValue("--line").trim() };
  };
  const layoutOf = (figure) => {
    const { front, line } = colours();
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
    const layout = structuredClone(figure.layout);
    return {
      ...layout,
      xaxis: { ...axis, ...layout.xaxis },
      yaxis: { ...axis, ...layout.yaxis },
      shapes: (layout.shapes || []).map((shape) => ({ ...shape, line: { color: front, ...shape.line } })),
      font: { color: front, size: 12, family: "system-ui, sans-serif" },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 55, r: 15, t: 10, b: 45, ...layout.margin },
      legend: { orientation: "h", yref: "container", yanchor: "bottom", y: 0, x: 0 },
      hoverlabel: { align: "left" },
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", // a finger on a figure scrolls the page
    };
  };
  const options = { responsive: true, displayModeBar: false, scrollZoom: false };
  const figures = new Map(data.figures.map((figure) => [figure.name, figure]));
  const drawn = new Map();
  const draw = (card) => {
    const figure = figures.get(card.dataset.figure);
    const place = card.querySelector(".plot");
    drawn.set(place, figure);
    const names = figure.data.filter((trace) => trace.showlegend !== false && trace.name).map((trace) => trace.name);
    const perLine = Math.max(1, Math.floor(place.clientWidth / (45 + 7.5 * Math.max(0, ...names.map((n) => n.length)))));
    const least = Math.max(place.clientHeight, figure.layout.meta?.least_height ?? 0);
    place.style.height = `${least + 20 * Math.ceil(names.length / perLine) - 20}px`;
    Plotly.newPlot(place, structuredClone(figure.data), layoutOf(figure), options);
  };
  const watcher = new IntersectionObserver((entries) => {
    entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
      watcher.unobserve(entry.target);
      draw(entry.target);
    });
  }, { rootMargin: "300px" });
  const cards = Array.from(document.querySelectorAll("[data-figure]"));
  cards.forEach((card) => watcher.observe(card));
  const closed = Array.from(document.querySelectorAll("details:not([open])"));
  addEventListener("afterprint", () => closed.filter((part) => part.dataset.printed).forEach((part) => {
    part.open = false;
    delete part.dataset.printed;
  }));
  addEventListener("beforeprint", () => { // paper has all tables and figures, also those that were never scrolled to
    closed.filter((part) => !part.open).forEach((part) => {
      part.open = true;
      part.dataset.printed = "yes";
    });
    cards.filter((card) => !drawn.has(card.querySelector(".plot"))).forEach((card) => {
      watcher.unobserve(card);
      draw(card);
    });
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    drawn.forEach((figure, place) => Plotly.react(place, structuredClone(figure.data), layoutOf(figure), options));
  });

  // --- radiographs ----------------------------------------------------------------------------------
  const view = byId("view");
  if (!view) return;
  const SCALE = 64;
  const ABSENT = -32768;
  const unpacked = new Map();
  const unpack = (text) => {
    if (!unpacked.has(text)) {
      const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
      unpacked.set(text, new DataView(bytes.buffer));
    }
    return unpacked.get(text);
  };
  const pointAt = (packed, index) => {
    const x = packed.getInt16(index * 4, true);
    const y = packed.getInt16(index * 4 + 2, true);
    return x === ABSENT || y === ABSENT ? null : [x / SCALE + 0.5, y / SCALE + 0.5]; // a pixel's centre is at its half
  };
  const svg = (name, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    Object.entries(attributes).forEach(([key, value]) => element.setAttribute(key, value));
    return element;
  };
  const choices = {
    comparison: byId("v-comparison"), shots: byId("v-shots"), order: byId("v-order"), image: byId("v-image"),
  };
  const landmarks = byId("v-landmarks");
  const comparison = () => data.viewer.comparisons[Number(choices.comparison.value)];
  const images = () => data.viewer.images[comparison().dataset];
  const armOf = (row) => comparison().arms[`${row},${choices.shots.value}`];
  const shownRows = () => Array.from(byId("v-rows").querySelectorAll("input:checked"), (box) => Number(box.value));

  const fill = (select, entries, value) => {
    select.replaceChildren(...entries.map(([key, label]) => {
      const option = document.createElement("option");
      option.value = key;
      option.textContent = label;
      return option;
    }));
    if (value !== undefined && entries.some(([key]) => String(key) === String(value))) select.value = value;
  };
  const meanError = (index) => {
    const errors = comparison().rows.map((_, row) => armOf(row)?.errors[index]).filter((error) => error != null);
    return errors.length ? errors.reduce((a, b) => a + b) / errors.length : -1;
  };
  const fillImages = () => {
    const before = choices.image.value;
    const order = images().map((image, index) => [index, image.name + (image.duplicate ? " (also in train or val)" : "")]);
    if (choices.order.value === "worst") order.sort(([a], [b]) => meanError(b) - meanError(a));
    fill(choices.image, order, before);
  };
  const pane = (row) => {
    const about = comparison().rows[row];
    const arm = armOf(row);
    const index = Number(choices.image.value);
    const image = images()[index];
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    const drawing = svg("svg", { viewBox: `0 0 ${image.width} ${image.height}`, role: "img" });
    const title = svg("title", {});
    title.textContent = `${about.label}: ${image.name}`;
    drawing.append(title, svg("image", { href: image.src, width: image.width, height: image.height }));
    if (arm === undefined) {
      caption.textContent = `${about.label}: no result at these shots`;
    } else {
      const error = arm.errors[index];
      const told = error == null ? "not evaluated" : `MRE ${error.toFixed(2)} ${comparison().unit}`;
      caption.textContent = `${about.label}: ${told} (seed ${arm.seed})`;
      if (landmarks.checked) drawPoints(drawing, unpack(comparison().truth), unpack(arm.points), index, image);
    }
    figure.append(drawing, caption);
    return figure;
  };
  const drawPoints = (drawing, truths, predictions, index, image) => {
    const count = comparison().landmarks.length;
    const radius = Math.max(image.width, image.height) / 110;
    for (let landmark = 0; landmark < count; landmark += 1) {
      const truth = pointAt(truths, index * count + landmark);
      const prediction = pointAt(predictions, index * count + landmark);
      if (truth && prediction) {
        drawing.append(svg("line", {
          x1: truth[0], y1: truth[1], x2: prediction[0], y2: prediction[1], stroke: "#f0e442",
          "stroke-width": radius / 2.5,
        }));
      }
      if (truth) {
        drawing.append(svg("circle", {
          cx: truth[0], cy: truth[1], r: radius, fill: "none", stroke: "#56b4e9", "stroke-width": radius / 2,
        }));
      }
      if (prediction) {
        const dot = svg("circle", { cx: prediction[0], cy: prediction[1], r: radius * 0.8, fill: "#d55e00" });
        const name = svg("title", {});
        const label = comparison().landmarks[landmark];
        name.textContent = label === String(landmark) ? `landmark ${landmark}` : label;
        dot.append(name);
        drawing.append(dot);
      }
    }
  };
  const show = () => {
    byId("v-panes").replaceChildren(...shownRows().map(pane));
    const place = choices.image.selectedIndex + 1;
    byId("v-status").textContent = `image ${place} of ${images().length}: ${choices.image.selectedOptions[0].textContent}, `
      + `${comparison().columns[Number(choices.shots.value)]} shots`;
  };
  const choose = () => {
    const { rows, columns } = comparison();
    const label = choices.shots.selectedOptions[0]?.textContent;
    fill(choices.shots, columns.map((name, index) => [index, name]));
    const counts = columns.map((_, column) => rows.filter((_, row) => `${row},${column}` in comparison().arms).length);
    const same = columns.indexOf(label);
    choices.shots.value = same >= 0 ? same : counts.lastIndexOf(Math.max(...counts));
    let checked = 0;
    const legend = byId("v-rows").querySelector("legend");
    byId("v-rows").replaceChildren(legend, ...rows.map((row, index) => {
      const box = document.createElement("input");
      box.type = "checkbox";
      box.value = index;
      box.checked = armOf(index) !== undefined && checked < 6;
      checked += box.checked;
      box.addEventListener("change", show);
      const name = document.createElement("label");
      name.append(box, document.createTextNode(row.label));
      return name;
    }));
    fillImages();
    show();
  };
  const step = (select, by) => {
    const count = select.options.length;
    select.selectedIndex = (select.selectedIndex + by + count) % count;
    if (select === choices.shots && choices.order.value === "worst") fillImages();
    show();
  };
  fill(choices.comparison, data.viewer.comparisons.map((one, index) => [index, one.title]));
  choices.comparison.addEventListener("change", choose);
  choices.order.addEventListener("change", () => { fillImages(); choices.image.selectedIndex = 0; show(); });
  choices.shots.addEventListener("change", () => { fillImages(); show(); });
  choices.image.addEventListener("change", show);
  landmarks.addEventListener("change", show);
  byId("v-previous").addEventListener("click", () => step(choices.image, -1));
  byId("v-next").addEventListener("click", () => step(choices.image, 1));
  view.addEventListener("keydown", (event) => {
    if (["SELECT", "INPUT"].includes(event.target.tagName) && event.target.type !== "checkbox") return;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const moves = {
      ArrowLeft: [choices.image, -1], ArrowRight: [choices.image, 1],
      ArrowUp: [choices.shots, 1], ArrowDown: [choices.shots, -1],
    };
    if (event.key in moves) {
      event.preventDefault();
      step(...moves[event.key]);
    } else if (event.key.toLowerCase() === "l") {
      landmarks.checked = !landmarks.checked;
      show();
    }
  });
  choose();
})();
