// The Slide tab.

import { $, attempt, chooseFiles, follow, get, make, onTab, send, state, takesFiles } from "./common.js";
import { Viewer } from "./viewer.js";

let told, viewer, current = null, running = null;
const number = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const arm = () => `arm=${encodeURIComponent($("#slide-arm").value)}`;

async function list() {
  const names = await get("/api/slides");
  $("#slides").replaceChildren(...names.map((name, index) => {
    const button = make("button", { title: name }, name);
    button.addEventListener("click", () => open(index));
    return button;
  }));
  mark();
  if (!names.length) $("#slides").replaceChildren(make("p", { className: "soft" }, "None yet. Upload one, drop it here, or start with stedm app --slides."));
  return names;
}

function mark() {
  [...$("#slides").children].forEach((button, index) => button.setAttribute?.("aria-pressed", index === current?.index));
}

const open = attempt(async (index, mpp) => {
  let slide;
  try {
    slide = await get(`/api/slides/${index}${mpp ? `?mpp=${mpp}` : ""}`);
  } catch (error) {
    if (/mpp|resolution|microns/i.test(error.message)) { $("#mpp-field").hidden = false; current = { index, closed: true }; mark(); }
    throw error;
  }
  current = { index, ...slide };
  $("#viewer-empty").hidden = true;
  viewer.open({ ...slide, tile: (zoom, x, y) => `/api/slides/${index}/tile/${zoom}/${x}/${y}` });
  mark();
  showAreas();
});

function showAreas() {
  const areas = current?.done?.[$("#slide-arm").value];
  if (!areas) { $("#areas").replaceChildren(); viewer.cover(null); return; }
  const { index } = current;
  viewer.cover((zoom, x, y) => `/api/slides/${index}/overlay/${zoom}/${x}/${y}?${arm()}`);
  const rows = areas.map((row) => {
    const swatch = make("i"), place = told.classes.indexOf(row.class);
    swatch.style.background = place > 0 ? `rgb(${told.colours[place]})` : "transparent";
    return make("tr", {}, make("td", {}, swatch, row.class), make("td", {}, number.format(row.area_mm2)), make("td", {}, `${Math.round(100 * row.fraction)} %`));
  });
  const head = make("tr", {}, make("th", {}, "class"), make("th", {}, "mm²"), make("th", {}, "of tissue"));
  const link = make("a", { className: "button", href: `/api/slides/${index}/geojson?${arm()}`, download: "" }, "Download GeoJSON");
  $("#areas").replaceChildren(make("table", { className: "key" }, make("thead", {}, head), make("tbody", {}, ...rows)), link);
}

const segment = attempt(async () => {
  if (running) { running.abort(); return; }
  const mpp = $("#slide-mpp").value;
  if (current?.closed) await open(current.index, mpp);
  if (!current || current.closed) throw new Error("choose a slide first");
  running = new AbortController();
  const progress = $("#slide-progress"), slide = current, name = $("#slide-arm").value;
  $("#segment").textContent = "Stop";
  progress.removeAttribute("value");
  progress.hidden = false;
  try {
    const { areas } = await follow(`/api/slides/${slide.index}/segment?${arm()}${mpp ? `&mpp=${mpp}` : ""}`, {}, (line) => { if (line.of) progress.value = line.done / line.of; }, running.signal);
    slide.done[name] = areas;
    showAreas();
  } finally {
    running = null;
    progress.hidden = true;
    $("#segment").textContent = "Segment";
  }
});

const upload = async (file) => {
  const { slide } = await (await send("/api/slides", file)).json();
  await list();
  await open(slide);
};

function showScale(scale) {
  if (!current?.mpp) return;
  const ratio = devicePixelRatio || 1, most = 140 * current.mpp / scale * ratio;
  const unit = 10 ** Math.floor(Math.log10(most)), microns = unit * [5, 2, 1].find((times) => times * unit <= most);
  $("#scale i").style.width = `${microns * scale / current.mpp / ratio}px`;
  $("#scale span").textContent = microns >= 1000 ? `${microns / 1000} mm` : `${microns} µm`;
}

async function begin() {
  told = await state;
  viewer = new Viewer($("#viewer"), showScale);
  $("#slide-arm").replaceChildren(...told.segmenters.map((name) => make("option", { value: name, selected: name === (told.segmenters.includes("real+stain+synthetic") ? "real+stain+synthetic" : told.segmenters[0]) }, name)));
  $("#segment").disabled = !told.segmenters.length;
  $("#mpp-field").hidden = !told.needs_mpp.includes($("#slide-arm").value);
  $("#slide-arm").addEventListener("change", () => { $("#mpp-field").hidden = !told.needs_mpp.includes($("#slide-arm").value); showAreas(); });
  $("#slide-mpp").addEventListener("change", () => { if (current?.closed && $("#slide-mpp").value) open(current.index, $("#slide-mpp").value); });
  $("#segment").addEventListener("click", segment);
  $("#slide-upload").addEventListener("click", () => chooseFiles("", false, upload));
  $("#opacity").addEventListener("input", () => { viewer.opacity = Number($("#opacity").value); viewer.draw(); });
  for (const [id, work] of [["zoom-in", () => viewer.zoom(1.5)], ["zoom-out", () => viewer.zoom(1 / 1.5)], ["zoom-fit", () => viewer.fit()]]) $(`#${id}`).addEventListener("click", work);
  takesFiles($("#slide"), upload);
  const names = await list();
  if (names.length) await open(0);
  $("#slide").dataset.ready = "yes";
}

let begun = false;
onTab("slide", () => {
  if (!begun) attempt(begin)();
  begun = true;
});
