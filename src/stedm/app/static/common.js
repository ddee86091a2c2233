// What all tabs use: requests and their errors, colours of classes, tabs, uploads, thumbnails.

export const $ = (selector, root = document) => root.querySelector(selector);

export function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "dataset") Object.assign(element.dataset, value);
    else if (key.includes("-") || key === "role") element.setAttribute(key, value);
    else element[key] = value;
  }
  element.append(...children);
  return element;
}

// ---- messages ------------------------------------------------------------------------------------------------------

export function say(text) {
  $("#alert span").textContent = text;
  $("#alert").hidden = !text;
}

export const attempt = (work) => async (...given) => {
  try {
    say("");
    return await work(...given);
  } catch (error) {
    if (error.name !== "AbortError") say(error.message);
    return undefined;
  }
};

// ---- requests ------------------------------------------------------------------------------------------------------

async function request(address, options = {}) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("stedm doesn't answer: is it still running in the terminal?");
  }
  if (!answer.ok) {
    const text = await answer.text();
    let told = text;
    try { told = JSON.parse(text).error; } catch { /* plain text */ }
    throw new Error(told || `the request failed (${answer.status})`);
  }
  return answer;
}

const asJson = (body) => ({ method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

export const get = async (address) => (await request(address)).json();
export const post = async (address, body) => (await request(address, asJson(body))).json();
export const send = async (address, file) =>
  request(`${address}?name=${encodeURIComponent(file.name)}`, { method: "POST", body: file });

export async function pixels(address, body) {
  const answer = await request(address, body === undefined ? {} : asJson(body));
  return pixelsOf(answer);
}

export async function pixelsOf(answer) {
  const [width, height] = ["X-Width", "X-Height"].map((name) => Number(answer.headers.get(name)));
  return { width, height, values: new Uint8Array(await answer.arrayBuffer()) };
}

// Lines of JSON as they come; the last one is returned.
export async function follow(address, body, onLine, signal) {
  const answer = await request(address, { ...asJson(body ?? {}), signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "", last = {};
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const parts = (waiting + value).split("\n");
    waiting = parts.pop();
    for (const part of parts) {
      last = JSON.parse(part);
      if (last.error) throw new Error(last.error);
      onLine(last);
    }
  }
  return last;
}

export const state = get("/api/state").catch((error) => { say(error.message); throw error; });

// ---- class maps ----------------------------------------------------------------------------------------------------

const UNKNOWN = [150, 150, 150];
const WRONG = [0, 229, 255];

// Draw class indices; where `truth` knows better they are in a colour that no class has.
export function drawMap(canvas, { width, height, values }, colours, truth) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let i = 0; i < values.length; i++) {
    const wrong = truth && truth.values[i] < colours.length && truth.values[i] !== values[i];
    image.data.set(wrong ? WRONG : colours[values[i]] ?? UNKNOWN, 4 * i);
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

export function legend(classes, colours, more = []) {
  const entry = (name, colour) => {
    const swatch = make("i");
    swatch.style.background = `rgb(${colour})`;
    return make("li", {}, swatch, name);
  };
  return make("ul", { className: "key" }, ...classes.map((name, i) => entry(name, colours[i])), ...more.map(([name, colour]) => entry(name, colour)));
}

export const wrongEntry = ["wrong", WRONG];
export const unknownColour = UNKNOWN;

// ---- tabs ----------------------------------------------------------------------------------------------------------

const opened = {};

export function onTab(name, work) {
  opened[name] = work;
  const wanted = location.hash.slice(1) || "paint";
  if (name === wanted) show(name);
}

function show(name) {
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const chosen = tab.dataset.tab === name;
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
    $(`#${tab.dataset.tab}`).hidden = !chosen;
  }
  history.replaceState(null, "", `#${name}`);
  opened[name]?.();
}

for (const tab of document.querySelectorAll("[role=tab]")) {
  tab.addEventListener("click", () => { say(""); show(tab.dataset.tab); });
  tab.addEventListener("keydown", (event) => {
    const tabs = [...document.querySelectorAll("[role=tab]")];
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
    next.focus();
    next.click();
  });
}
addEventListener("keydown", (event) => {
  const tab = event.altKey && ["paint", "run", "slide"][Number(event.key) - 1];
  if (tab) { event.preventDefault(); show(tab); }
});
$("#alert button").addEventListener("click", () => say(""));
$("#keys-open").addEventListener("click", () => $("#keys").showModal());
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
}

// ---- files and pickers ---------------------------------------------------------------------------------------------

export function chooseFiles(accept, multiple, work) {
  const input = $("#file");
  Object.assign(input, { accept, multiple, value: "", onchange: () => attempt(async () => { for (const file of input.files) await work(file); })() });
  input.click();
}

// Let a region take dropped files.
export function takesFiles(region, work) {
  region.addEventListener("dragover", (event) => { event.preventDefault(); region.classList.add("over"); });
  region.addEventListener("dragleave", () => region.classList.remove("over"));
  region.addEventListener("drop", (event) => {
    event.preventDefault();
    region.classList.remove("over");
    attempt(async () => { for (const file of event.dataTransfer.files) await work(file); })();
  });
}

export function pick(title, buttons, upload) {
  const dialog = $("#picker");
  $("#picker-upload").onclick = () => { dialog.close(); upload(); };
  $("h2", dialog).textContent = title;
  $(".thumbs", dialog).replaceChildren(...buttons);
  dialog.showModal();
}

export const closePicker = () => $("#picker").close();

// Sliders show their value beside them.
for (const label of document.querySelectorAll(".slider")) {
  const input = $("input[type=range]", label), output = $("output", label);
  if (!input || !output) continue;
  const update = () => { output.textContent = input.value; };
  input.addEventListener("input", update);
  input.addEventListener("set", update);
  update();
}

export function setSlider(selector, value) {
  $(selector).value = value;
  $(selector).dispatchEvent(new Event("set"));
}

export const percent = (value) => `${Math.round(100 * value)} %`;
state.then((told) => { $("#name").textContent = told.name; document.title = `${told.name} – stedm`; });
