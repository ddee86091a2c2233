// The Paint tab.

import { $, attempt, chooseFiles, closePicker, drawMap, follow, get, make, onTab, percent, pick, pixels, pixelsOf, post, say, send, setSlider, state, takesFiles, unknownColour } from "./common.js";
import { Brush, UNKNOWN } from "./brush.js";

let told, brush, recipe = null, running = null, waiting = false;
const style = { kind: "images", set: "unlabeled", patient: null, images: [] };
const patients = {};
const gallery = [];
const IMAGES = "image/png,image/jpeg,image/tiff,image/bmp";

const image = (set, row) => `/api/images/${set}/${row}.png`;
const addressOf = (chosen) => ("upload" in chosen ? `/api/uploads/${chosen.upload}.png` : image(chosen.set, chosen.row));

// ---- the layout ----------------------------------------------------------------------------------------------------

function brushButtons() {
  const entries = [...told.classes.map((name, index) => [name, index, told.colours[index]]), ["unknown", UNKNOWN, unknownColour]];
  $("#brushes").replaceChildren(...entries.map(([name, index, colour], number) => {
    const swatch = make("i");
    swatch.style.background = `rgb(${colour})`;
    const input = make("input", { type: "radio", name: "brush", value: String(index), checked: index === brush.colour });
    input.addEventListener("change", () => { brush.colour = index; });
    const label = make("label", { title: `${name}: key ${number + 1}` }, input, make("span", {}, swatch, name));
    return label;
  }));
}

function changed() {
  recipe = null;
  $("#layout-note").textContent = "";
  live();
}

async function take(found, note) {
  recipe = found;
  const { values } = await pixels("/api/layout", found);
  brush.set(values);
  $("#layout-note").textContent = note;
  live();
}

async function layoutsDialog() {
  const most = 60, step = Math.max(1, told.layouts.length / most);
  const rows = [...new Set(Array.from({ length: Math.min(most, told.layouts.length) }, (_, i) => Math.floor(i * step)))];
  const buttons = rows.map((row) => {
    const [patient, category] = told.layouts[row];
    const canvas = make("canvas"), button = make("button", { type: "button", title: `${patient} ${category}` }, canvas, make("small", {}, patient));
    pixels("/api/layout", { kind: "resample", row }).then((map) => drawMap(canvas, map, told.colours), () => {});
    button.addEventListener("click", attempt(async () => { closePicker(); await take({ kind: "resample", row }, `of ${patient}`); }));
    return button;
  });
  pick(buttons.length ? "Layouts of annotated patients" : "Upload a mask", buttons, () => chooseFiles("image/png", false, uploadLayout));
}

const fromPrior = attempt(async () => {
  const found = await post("/api/prior", { seed: Math.floor(Math.random() * 2 ** 31) });
  await take(found, `after ${told.layouts[found.row][0]}`);
});

const uploadLayout = async (file) => {
  const { values } = await pixelsOf(await send("/api/uploads/layout", file));
  recipe = null;
  brush.set(values);
  $("#layout-note").textContent = file.name;
  live();
};

// ---- the style -----------------------------------------------------------------------------------------------------

function chooseKind(kind) {
  style.kind = kind;
  $(`input[name=style][value=${kind}]`).checked = true;
  for (const name of ["patient", "images", "mix"]) $(`#style-${name}`).hidden = name !== kind;
  showStyle();
  live();
}

function choosePatient(index) {
  style.patient = index;
  [...$("#style-patient .thumbs").children].forEach((option, i) => {
    option.setAttribute("aria-selected", i === index);
    if (i === index) option.scrollIntoView({ block: "nearest" });
  });
  showStyle();
  live();
}

function patientThumbs() {
  const list = $("#style-patient .thumbs");
  list.replaceChildren(...patients.unlabeled.map(({ id, category, rows }, index) => {
    const option = make("div", { role: "option", title: `${id} ${category}`.trim(), "aria-selected": "false" }, make("img", { src: image("unlabeled", rows[0]), alt: "", loading: "lazy" }), make("small", {}, id));
    option.addEventListener("click", () => choosePatient(index));
    return option;
  }));
  list.addEventListener("keydown", (event) => {
    const columns = 4, by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
    if (!by) return;
    event.preventDefault();
    choosePatient(Math.min(patients.unlabeled.length - 1, Math.max(0, (style.patient ?? 0) + by)));
  });
}

function mixEnds() {
  const set = () => {
    for (const end of ["a", "b"]) {
      const { rows } = patients.unlabeled[Number($(`#mix-${end}`).value)];
      $(`#mix-${end}-image`).src = image("unlabeled", rows[0]);
    }
    showStyle();
    live();
  };
  for (const [end, chosen] of [["a", 0], ["b", patients.unlabeled.length - 1]]) {
    $(`#mix-${end}`).replaceChildren(...patients.unlabeled.map(({ id, category }, index) => make("option", { value: String(index), selected: index === chosen }, category ? `${id} (${category})` : id)));
    $(`#mix-${end}`).addEventListener("change", set);
  }
  $("#mix").addEventListener("change", live);
  set();
}

function stylesDialog() {
  const buttons = ["unlabeled", "annotated"].filter((set) => patients[set]).flatMap((set) => patients[set].flatMap(({ id, category, rows }) => rows.slice(0, 8).map((row) => {
    const button = make("button", { type: "button", title: `${id} ${category}` }, make("img", { src: image(set, row), alt: "", loading: "lazy" }), make("small", {}, id));
    const place = () => style.images.findIndex((chosen) => chosen.set === set && chosen.row === row);
    button.setAttribute("aria-pressed", place() >= 0);
    button.addEventListener("click", () => {
      if (place() >= 0) style.images.splice(place(), 1);
      else addStyle({ set, row });
      button.setAttribute("aria-pressed", place() >= 0);
      showChosen();
      live();
    });
    return button;
  })));
  pick("Style images", buttons, () => chooseFiles(IMAGES, true, uploadStyle));
}

function addStyle(chosen) {
  if (style.images.length >= told.most_style_images) say(`${told.most_style_images} style images at most; remove one first`);
  else style.images.push(chosen);
}

const uploadStyle = async (file) => {
  const { upload } = await (await send("/api/uploads/style", file)).json();
  addStyle({ upload });
  chooseKind("images");
  showChosen();
};

function showChosen() {
  $("#chosen-none").hidden = style.images.length > 0;
  $("#chosen").replaceChildren(...style.images.map((chosen, index) => {
    const button = make("button", { title: "Remove" }, make("img", { src: addressOf(chosen), alt: "style image" }));
    button.addEventListener("click", () => { style.images.splice(index, 1); showChosen(); live(); });
    return button;
  }));
  showStyle();
}

function shownOf(index) {
  const { rows } = patients.unlabeled[index];
  return [0, 1, 2].map((i) => rows[Math.floor(i * rows.length / 3)]).map((row) => image("unlabeled", row));
}

function styleOrder() {
  if (style.kind === "patient") return { set: "unlabeled", patient: style.patient };
  if (style.kind === "images") return { images: style.images };
  return { set: "unlabeled", patient: Number($("#mix-a").value), other: Number($("#mix-b").value), weight: Number($("#mix").value) };
}

function showStyle() {
  let sources = [];
  if (style.kind === "images") sources = style.images.map(addressOf).slice(0, 6);
  else if (style.kind === "patient" && style.patient !== null) sources = shownOf(style.patient);
  else if (style.kind === "mix" && patients.unlabeled) sources = [...shownOf(Number($("#mix-a").value)).slice(0, 1), ...shownOf(Number($("#mix-b").value)).slice(0, 1)];
  $("#style-shown").replaceChildren(...sources.map((src) => make("img", { src, alt: "style image" })));
}

// ---- painting ------------------------------------------------------------------------------------------------------

const base64 = (bytes) => btoa(Array.from(bytes, (value) => String.fromCharCode(value)).join(""));

function order() {
  return {
    layout: base64(brush.values), recipe, style: styleOrder(), seed: Number($("#seed").value) || 0,
    style_guidance: Number($("#g-style").value), layout_guidance: Number($("#g-layout").value), steps: Number($("#steps").value),
  };
}

const paint = attempt(async () => {
  if (running) { running.abort(); return; }
  running = new AbortController();
  const asked = order(), started = performance.now(), progress = $("#progress");
  $("#go").textContent = "Stop";
  progress.removeAttribute("value");
  progress.hidden = false;
  try {
    const done = await follow("/api/paint", asked, (line) => { if (line.of) progress.value = line.done / line.of; }, running.signal);
    const entry = { ...done, asked, seconds: (performance.now() - started) / 1000, kept: { ...style, images: [...style.images] } };
    entry.seen = done.agreement === null ? null : await pixels(`/api/painted/${done.painted}/seen`);
    gallery.unshift(entry);
    gallery.splice(64);
    await show(entry);
    showGallery(entry);
  } finally {
    running = null;
    progress.hidden = true;
    $("#go").textContent = "Paint";
    if (waiting) { waiting = false; setTimeout(paint); }
  }
});

function live() {
  if (!$("#live").checked || !brush) return;
  if (running) waiting = true;
  else paint();
}

async function show(entry) {
  const shown = $("#image"), frame = $("#image-frame");
  shown.src = `/api/painted/${entry.painted}/image.png`;
  await shown.decode();
  shown.hidden = false;
  frame.classList.remove("empty");
  frame.dataset.painted = entry.painted;
  $("#image-note").textContent = `${entry.seconds.toFixed(1)} s`;
  $("#seen").hidden = !entry.seen;
  if (entry.seen) {
    const map = { width: brush.side, height: brush.side, values: entry.seen.values };
    drawMap($("#seen"), map, told.colours);
    $("#seen").parentElement.classList.remove("empty");
    $("#seen-note").textContent = `${told.judge}: ${percent(entry.agreement)} as asked`;
  }
  const link = $("#download");
  link.href = `/api/painted/${entry.painted}/zip`;
  link.download = `painted-${entry.painted}.zip`;
  link.hidden = false;
}

function showGallery(current) {
  $("#gallery").replaceChildren(...gallery.map((entry) => {
    const button = make("button", { title: `Seed ${entry.asked.seed}, guidance ${entry.asked.style_guidance} and ${entry.asked.layout_guidance}, ${entry.asked.steps} steps` }, make("img", { src: `/api/painted/${entry.painted}/image.png`, alt: `Painted image ${entry.painted}` }));
    button.setAttribute("aria-pressed", entry === current);
    button.addEventListener("click", attempt(async () => { restore(entry); await show(entry); showGallery(entry); }));
    return button;
  }));
}

function restore({ asked, kept }) {
  const checked = $("#live").checked;
  $("#live").checked = false;
  brush.set(Uint8Array.from(atob(asked.layout), (letter) => letter.charCodeAt(0)));
  recipe = asked.recipe;
  $("#layout-note").textContent = "";
  Object.assign(style, kept, { images: [...kept.images] });
  if (kept.kind === "mix") {
    $("#mix-a").value = asked.style.patient;
    $("#mix-b").value = asked.style.other;
    $("#mix").value = asked.style.weight;
  }
  if (kept.kind === "patient") choosePatient(kept.patient);
  showChosen();
  chooseKind(kept.kind);
  setSlider("#g-style", asked.style_guidance);
  setSlider("#g-layout", asked.layout_guidance);
  setSlider("#steps", asked.steps);
  $("#seed").value = asked.seed;
  $("#live").checked = checked;
}

// ---- set-up --------------------------------------------------------------------------------------------------------

function keys(event) {
  if ($("#paint").hidden || document.querySelector("dialog[open]")) return;
  if (event.ctrlKey && event.key === "Enter") paint();
  else if (event.ctrlKey && event.key.toLowerCase() === "z" && event.target.type !== "number") brush.undo();
  else if (event.ctrlKey || event.altKey || event.metaKey || event.target.matches("input[type=number], select")) return;
  else if (event.key === "[" || event.key === "]") resize(Number($("#brush-size").value) + (event.key === "]" ? 1 : -1));
  else if (/^[1-9]$/.test(event.key)) $("#brushes").children[Number(event.key) - 1]?.querySelector("input").click();
  else return;
  event.preventDefault();
}

function resize(diameter) {
  setSlider("#brush-size", Math.min(24, Math.max(1, diameter)));
  brush.radius = Number($("#brush-size").value) / 2;
}

async function begin() {
  told = await state;
  if (!told.has_model) {
    $("#paint").classList.add("missing");
    say(`${told.name} has no diffusion model to paint with; train one with "stedm run". Run and Slide work without.`);
    return;
  }
  brush = new Brush($("#layout"), $("#ring"), told.image_px, told.colours, changed);
  $("#brush-size").max = Math.max(24, told.image_px / 4);
  resize(Math.round(told.image_px / 8));
  brushButtons();
  setSlider("#g-style", told.guidance.style);
  setSlider("#g-layout", told.guidance.layout);
  setSlider("#steps", told.steps);
  $("#seen-empty").textContent = told.judge ? "" : "Open a run to see what a segmenter finds.";
  for (const [selector, work] of [["#go", paint], ["#undo", () => brush.undo()], ["#fill", () => brush.fill()], ["#layout-choose", layoutsDialog], ["#layout-prior", fromPrior], ["#style-pick", stylesDialog]]) $(selector).addEventListener("click", work);
  $("#style-upload").addEventListener("click", () => chooseFiles(IMAGES, true, uploadStyle));
  $("#brush-size").addEventListener("input", () => resize(Number($("#brush-size").value)));
  $("#reseed").addEventListener("click", () => { $("#seed").value = Math.floor(Math.random() * 1e6); live(); });
  for (const selector of ["#g-style", "#g-layout", "#steps", "#seed", "#live"]) $(selector).addEventListener("change", live);
  for (const input of document.querySelectorAll("input[name=style]")) input.addEventListener("change", () => chooseKind(input.value));
  takesFiles($("aside"), uploadStyle);
  takesFiles($("#layout").parentElement, uploadLayout);
  addEventListener("keydown", keys);
  await withData();
  $("#paint").dataset.ready = "yes";
}

async function withData() {
  if (told.data_problem) say(`The images of the run are not shown: ${told.data_problem}`);
  const has = (set) => told.sets.includes(set);
  $("#layout-prior").hidden = !has("annotated");
  for (const set of ["unlabeled", "annotated"].filter(has)) patients[set] = await get(`/api/patients/${set}`);
  $("#style-pick").hidden = !patients.unlabeled && !patients.annotated;
  for (const kind of ["patient", "mix"]) $(`input[name=style][value=${kind}]`).disabled = !patients.unlabeled;
  if (has("annotated")) {
    const row = Math.floor(told.layouts.length / 2);
    await take({ kind: "resample", row }, `of ${told.layouts[row][0]}`);
  }
  if (!patients.unlabeled) { chooseKind("images"); return; }
  patientThumbs();
  mixEnds();
  choosePatient(0);
  chooseKind("patient");
}

let begun = false;
onTab("paint", () => {
  if (!begun) attempt(begin)();
  begun = true;
});
