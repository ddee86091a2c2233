// The Run tab: a plot of patients, and one of them.

import { $, attempt, drawMap, follow, get, legend, make, onTab, percent, pixels, state, wrongEntry } from "./common.js";

let told, run, chosen = null;
const SVG = "http://www.w3.org/2000/svg";
const two = (value) => (value === null || value === undefined ? "–" : value.toFixed(2));

function drawn(name, attributes, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// ---- the plot ------------------------------------------------------------------------------------------------------

const arms = () => ({ a: $("#arm-a").value, b: $("#arm-b").value });

function plot() {
  const { a, b } = arms();
  const scored = run.patients.filter(({ iou }) => iou[a] != null || iou[b] != null);
  scored.sort((p, q) => (p.iou[b] ?? -1) - (q.iou[b] ?? -1) || (p.iou[a] ?? -1) - (q.iou[a] ?? -1));
  const width = 620, height = 250, left = 34, right = 8, top = 10, bottom = 22;
  const x = (i) => left + (width - left - right) * (i + 0.5) / scored.length;
  // From the quarter below the worst patient.
  const least = Math.min(0.75, Math.floor(4 * Math.min(...scored.flatMap(({ iou }) => [iou[a] ?? 1, iou[b] ?? 1]))) / 4);
  const y = (value) => top + (height - top - bottom) * (1 - value) / (1 - least);
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `IoU per patient, ${b} and ${a}` });
  for (const tick of [0, 0.25, 0.5, 0.75, 1].filter((value) => value >= least)) {
    svg.append(drawn("line", { x1: left, x2: width - right, y1: y(tick), y2: y(tick), class: "grid" }), drawn("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, tick.toFixed(2)));
  }
  scored.forEach((patient, i) => {
    const { id, category, number, iou } = patient;
    const text = `${id}${category ? ` (${category})` : ""}: ${b} ${two(iou[b])}, ${a} ${two(iou[a])}`;
    const group = drawn("g", { class: "patient", tabindex: i ? -1 : 0, role: "button", "aria-label": text }, drawn("title", {}, text));
    const half = Math.min(14, (width - left - right) / scored.length / 2);
    group.append(drawn("rect", { x: x(i) - half, width: 2 * half, y: top, height: height - top - bottom, class: "hit" }));
    const from = iou[b] ?? iou[a], to = iou[a] ?? iou[b];
    group.append(drawn("line", { x1: x(i), x2: x(i), y1: y(from), y2: y(to), class: to < from ? "lost" : "won" }));
    if (iou[b] != null) group.append(drawn("circle", { cx: x(i), cy: y(iou[b]), r: 4, class: "before" }));
    if (iou[a] != null) group.append(drawn("circle", { cx: x(i), cy: y(iou[a]), r: 4.5, class: to < from ? "lost" : "won" }));
    if (scored.length <= 30) group.append(drawn("text", { x: x(i), y: height - 8, "text-anchor": "middle", class: "id" }, id.length > 4 ? `${id.slice(0, 3)}…` : id));
    const open = () => { if (number !== null) showPatient("held_out", number, patient); };
    group.addEventListener("click", open);
    group.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(); }
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const next = by && [...svg.querySelectorAll(".patient")][i + by];
      if (next) { event.preventDefault(); next.focus(); }
    });
    svg.append(group);
  });
  const key = make("p", { className: "soft" });
  key.append(`Hollow: ${b}. Filled: ${a}, green where it is higher, orange where it is lower. Sorted by ${b}. Click a ${run.unit}.`);
  $("#plot").replaceChildren(svg, key);
}

// ---- what else the run says ----------------------------------------------------------------------------------------

function verdict() {
  const sentences = run.sentences.length ? [make("details", {}, make("summary", {}, "More"), make("ul", {}, ...run.sentences.map((text) => make("li", {}, text))))] : [];
  $("#verdict").className = run.tone;
  $("#verdict").replaceChildren(make("p", {}, run.headline), ...sentences);
}

function asides() {
  const parts = [];
  if (run.contradicted) {
    const list = make("div", { className: "chips" }, ...run.contradicted.map(({ id, category, number, agreement, doubted }) => {
      const button = make("button", { className: doubted ? "doubted" : "", title: category ? `${id} (${category})` : id }, `${id} ${agreement === null ? "–" : percent(agreement)}`);
      button.addEventListener("click", () => showPatient("unlabeled", number, { id, category, iou: {} }));
      return button;
    }));
    parts.push(make("h2", {}, "Whom to annotate next"), make("p", { className: "soft" }, "Unannotated patients, and how far the segmenters of two rounds agree about them. " + (run.contradicted.some(({ doubted }) => doubted) ? "Those in orange contradict each other: their masks would teach most." : "The first ones would teach most.")), list);
  }
  const { rows, warnings } = run.quality;
  if (rows.length || warnings.length) {
    const cells = (kind, values) => make("tr", {}, ...values.map((value) => make(kind, {}, typeof value === "number" ? value.toFixed(3) : value ?? "–")));
    const table = make("table", { id: "quality" }, make("thead", {}, cells("th", ["measure", "synthetic", "real", "chance"])), make("tbody", {}, ...rows.map((row) => cells("td", row))));
    parts.push(make("h2", {}, "Quality of the painted images"), ...warnings.map((text) => make("p", { className: "warning" }, text)), table);
  }
  $("#asides").replaceChildren(...parts);
}

// ---- one patient ---------------------------------------------------------------------------------------------------

function frame(name, content) {
  return make("figure", {}, content, make("figcaption", {}, name));
}

async function showPatient(set, number, patient) {
  chosen = { set, number, patient };
  for (const group of document.querySelectorAll("#plot .patient")) group.classList.toggle("chosen", group.getAttribute("aria-label").startsWith(`${patient.id}${patient.category ? " (" : ":"}`));
  await attempt(fill)();
}

async function fill() {
  const { set, number, patient } = chosen, { a, b } = arms();
  const found = await get(`/api/patient/${set}/${number}`);
  const box = $("#patient"), names = [...new Set([b, a])];
  const scores = names.filter((arm) => patient.iou[arm] != null).map((arm) => `${arm} ${two(patient.iou[arm])}`).join(", ");
  const facts = [set === "unlabeled" ? "nobody annotated" : scores && `IoU ${scores}`, `${found.n_images} images`].filter(Boolean).join(" · ");
  const heading = make("h2", {}, found.category ? `${found.id} (${found.category})` : found.id, " ", make("small", {}, facts));
  const rows = make("div", { className: "cases" });
  box.replaceChildren(heading, legend(told.classes, told.colours, set === "unlabeled" ? [] : [wrongEntry]), rows);
  box.dataset.patient = found.id;
  const drawing = found.rows.map((row, i) => oneCase(rows, set, row, found.has_truth[i], names));
  await Promise.all(drawing);
  box.append(...(await painted(found, set, number)));
  box.dataset.ready = found.id;
}

async function oneCase(rows, set, row, hasTruth, names) {
  const line = make("div", { className: "case" }, frame("image", make("img", { src: `/api/images/${set}/${row}.png`, alt: "image" })));
  rows.append(line);
  let truth = null;
  if (hasTruth) {
    const canvas = make("canvas");
    line.append(frame("truth", canvas));
    truth = await pixels(`/api/truth/${set}/${row}`);
    drawMap(canvas, truth, told.colours);
  }
  for (const arm of names.filter((name) => told.segmenters.includes(name))) {
    const canvas = make("canvas", { className: "predicted" });
    line.append(frame(arm, canvas));
    drawMap(canvas, await pixels(`/api/predicted/${set}/${row}?arm=${encodeURIComponent(arm)}`), told.colours, truth);
  }
}

async function painted(found, set, number) {
  const title = make("h2", {}, "Painted in its style ", make("small", {}, set === "unlabeled" ? `by the run, ${found.n_painted} images` : "now, annotated layouts; no network learned from these"));
  const grid = make("div", { className: "pairs" });
  if (set === "unlabeled") {
    for (const row of found.painted) grid.append(await pair(`/api/synthetic/${row}/mask`, `/api/synthetic/${row}/image.png`));
    return found.n_painted ? [title, grid] : [];
  }
  if (!told.has_model || !told.layouts.length) return [];
  const button = make("button", {}, "Paint four layouts in its style");
  button.addEventListener("click", attempt(async () => {
    button.disabled = true;
    try {
      for (let i = 0; i < 4; i++) grid.append(await paintOne(Math.floor((i + 0.5) * told.layouts.length / 4), set, number, i));
      button.remove();
    } finally { button.disabled = false; }
  }));
  return [title, button, grid];
}

async function paintOne(row, set, number, seed) {
  const { values } = await pixels("/api/layout", { kind: "resample", row });
  const layout = btoa(Array.from(values, (value) => String.fromCharCode(value)).join(""));
  const order = { layout, style: { set, patient: number }, seed, style_guidance: told.guidance.style, layout_guidance: told.guidance.layout, steps: told.steps };
  const { painted: id } = await follow("/api/paint", order, () => {});
  return pair(`/api/painted/${id}/mask`, `/api/painted/${id}/image.png`);
}

async function pair(mask, image) {
  const canvas = make("canvas");
  drawMap(canvas, await pixels(mask), told.colours);
  return make("div", { className: "pair" }, canvas, make("img", { src: image, alt: "painted image" }));
}

// ---- set-up --------------------------------------------------------------------------------------------------------

async function begin() {
  told = await state;
  run = await get("/api/run");
  for (const [selector, name] of [["#arm-a", run.pair[0]], ["#arm-b", run.pair[1]]]) {
    $(selector).replaceChildren(...run.arms.map((arm) => make("option", { value: arm.name, selected: arm.name === name }, `${arm.name} ${two(arm.iou)}`)));
    $(selector).addEventListener("change", () => { plot(); if (chosen) showPatient(chosen.set, chosen.number, chosen.patient); });
  }
  verdict();
  plot();
  asides();
  $("#patient").replaceChildren(make("p", { className: "soft" }, `Click a ${run.unit} in the plot to see its images, what two arms made of them, and what is painted in its style.`));
  $("#run").dataset.ready = "yes";
}

let begun = false;
onTab("run", attempt(async () => {
  if (begun) return;
  begun = true;
  await begin().catch((error) => { begun = false; $("#run").classList.add("missing"); throw error; });
  $("#run").classList.remove("missing");
}));
