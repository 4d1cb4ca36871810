import * as api from "./api.js";

const $ = (selector, root = document) => root.querySelector(selector);
const copy = (id) => $(`#${id}`).content.firstElementChild.cloneNode(true);
const element = (tag, text, attributes = {}) => {
  const made = Object.assign(document.createElement(tag), { textContent: text });
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
};

const LETTERS = ["A", "B"];
const tasks = []; // { letter, element, adapter, text that it was written for, promise while it is being written }
const mixture = "page-" + Array.from(crypto.getRandomValues(new Uint8Array(6)), (byte) => byte.toString(16)).join("");
let mixed = false; // whether the server has the mixture
let base = "";
let asked = ""; // the message asked last
const active = new Set(); // AbortControllers of the answers that come in

const say = (text) => { $("#said").textContent = text; };
const written = () => tasks.filter((task) => task.adapter);
const share = () => Number($("#share").value) / 100;

function problem(root, error) {
  const place = $(".problem:not(.far)", root);
  place.hidden = !error;
  place.textContent = error ? error.message : "";
  if (error instanceof api.KeyWanted) askForKey();
}

// The adapters

function addTask() {
  const task = { letter: LETTERS[tasks.length], element: copy("task-template"), adapter: null, text: null, writing: null };
  const root = task.element;
  tasks.push(task);
  $(".title", root).textContent = tasks.length > 1 ? `Description ${task.letter}` : "Description";
  $("form", root).addEventListener("submit", (event) => { event.preventDefault(); write(task); });
  $("textarea", root).addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); $("form", root).requestSubmit(); }
  });
  for (const button of root.querySelectorAll(".download")) {
    button.addEventListener("click", () => download(button, root, task.adapter.id, task.adapter.description));
  }
  $(".remove", root).hidden = tasks.length === 1;
  $(".remove", root).addEventListener("click", () => removeTask(task));
  $("#tasks").append(root);
  arrange();
  return task;
}

function removeTask(task) {
  tasks.splice(tasks.indexOf(task), 1);
  task.element.remove();
  arrange();
  $("#compare").focus();
}

function arrange() {
  const two = tasks.length === 2;
  $(".title", tasks[0].element).textContent = two ? "Description A" : "Description";
  $("#compare").hidden = two || !tasks[0].adapter;
  $("#between").hidden = written().length < 2;
  $("#send").disabled = active.size > 0;
  $("#stop").disabled = active.size === 0;
}

// Write the adapter of a task's description; true if that succeeds.
function write(task) {
  task.writing ??= rewrite(task).finally(() => { task.writing = null; });
  return task.writing;
}

async function rewrite(task) {
  const root = task.element, description = $("textarea", root).value.trim(), button = $("[type=submit]", root);
  if (!description) return false;
  button.disabled = true;
  problem(root, null);
  say("The adapter is being written.");
  try {
    task.adapter = await api.describe(description);
    task.text = description;
    show(task);
    return true;
  } catch (error) {
    problem(root, error);
    return false;
  } finally {
    button.disabled = false;
    arrange();
  }
}

// Bring a task's adapter up to date with its text; false if that fails.
async function refreshed(task) {
  await task.writing;
  const text = $("textarea", task.element).value.trim();
  if (text === (task.text ?? "")) return true;
  if (text) return write(task);
  task.adapter = task.text = null;
  $(".adapter", task.element).hidden = true;
  arrange();
  return true;
}

const inSeconds = (seconds) => `${seconds < 0.095 ? seconds.toFixed(3) : seconds.toFixed(2)} s`;

function show(task) {
  const { adapter, element: root } = task;
  const size = `${(adapter.parameters / 1e6).toFixed(2)} million numbers, ${(adapter.parameters * 4 / 1e6).toFixed(1)} MB`;
  const facts = `Written in ${inSeconds(adapter.seconds)}: ${size}, rank ${adapter.rank}.`;
  $(".facts", root).textContent = facts;
  $(".adapter", root).hidden = false;
  $(".far", root).hidden = $(".nearest", root).hidden = true;
  say(facts);
  const current = (show) => (found) => { if (task.adapter === adapter) show(root, found); };
  const failed = (error) => problem(root, error);
  api.norms(adapter.id).then(current(draw)).catch(failed);
  api.nearest(adapter.id).then(current(compareToTrained)).catch(failed);
}

function draw(root, { norms }) {
  const strips = $(".strips", root), table = $("table", root);
  strips.replaceChildren();
  table.replaceChildren();
  const most = Math.max(...Object.values(norms).flat(), Number.MIN_VALUE);
  const layers = Object.values(norms)[0].length;
  table.createTHead().append(element("th", "layer", { scope: "col" }));
  for (const [name, values] of Object.entries(norms)) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const [least, largest] = [Math.min(...values), Math.max(...values)].map((value) => value.toFixed(2));
    svg.setAttribute("viewBox", `0 0 ${layers} 1`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `${name}: between ${least} and ${largest}, largest in layer ${values.indexOf(Math.max(...values))}`);
    values.forEach((value, layer) => {
      const cell = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      for (const [key, number] of Object.entries({ x: layer + 0.05, y: 0, width: 0.9, height: 1 })) cell.setAttribute(key, number);
      cell.setAttribute("fill-opacity", (value / most).toFixed(3));
      svg.append(cell);
    });
    strips.append(element("p", `${name}, ${least} to ${largest}`), svg);
    table.tHead.append(element("th", name, { scope: "col" }));
  }
  const body = table.createTBody();
  for (let layer = 0; layer < layers; layer++) {
    const row = body.insertRow();
    row.append(element("th", layer, { scope: "row" }), ...Object.values(norms).map((values) => element("td", values[layer].toFixed(3))));
  }
  $(".axis", root).textContent = `Layer 0 on the left, layer ${layers - 1} on the right; the stronger the colour, the larger.`;
}

function compareToTrained(root, { nearest, near }) {
  $(".nearest", root).hidden = !nearest;
  $(".far", root).hidden = near !== false;
  if (!nearest) return;
  $(".nearest ol", root).replaceChildren(
    ...nearest.map((found) => element("li", `${found.description} (similarity ${found.similarity.toFixed(2)})`)),
  );
  if (near === false) say($(".far", root).textContent);
}

// Save a file of an adapter, under a name made of its description.
async function download(button, root, name, description) {
  button.disabled = true;
  problem(root, null);
  try {
    const part = button.dataset.file, blob = await api.file(name, part);
    const stem = description.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 60);
    const link = element("a", "", { href: URL.createObjectURL(blob), download: `${stem || "adapter"}.${part.split(".")[1]}` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  } catch (error) {
    problem(root, error);
  } finally {
    button.disabled = false;
  }
}

// The conversation

function models() {
  const found = [{ id: base, title: "Base model" }];
  for (const task of written()) {
    found.push({ id: task.adapter.id, title: tasks.length > 1 ? `Adapter ${task.letter}` : "With the adapter" });
  }
  if (written().length === 2) found.push({ id: mixture, title: mixtureTitle(), mixed: true });
  return found;
}

const mixtureTitle = () => `Mixture, ${Math.round(share() * 100)}% of B`;

async function ask(message) {
  for (const task of tasks) if (!(await refreshed(task))) return;
  asked = message;
  const turn = copy("turn-template");
  $("h3", turn).textContent = message;
  $("#turns").prepend(turn);
  await Promise.all(models().map((model) => {
    const place = copy("answer-template");
    place.classList.toggle("mixture", Boolean(model.mixed));
    $("h4", place).textContent = model.title;
    $(".columns", turn).append(place);
    return answer(place, model, message);
  }));
  say(Array.from(turn.querySelectorAll(".answer"), spoken).join(". "));
}

// Stream an answer to its place, instead of one that still comes in there.
async function answer(place, model, message) {
  place.controller?.abort();
  const controller = (place.controller = new AbortController());
  const text = $(".text", place);
  active.add(controller);
  arrange();
  text.textContent = "";
  problem(place, null);
  place.setAttribute("aria-busy", "true");
  try {
    if (model.mixed) await mix(controller.signal);
    for await (const piece of api.answer(model.id, message, controller.signal)) text.append(piece);
  } catch (error) {
    if (error.name !== "AbortError") problem(place, error);
  } finally {
    active.delete(controller);
    if (place.controller === controller) place.removeAttribute("aria-busy");
    arrange();
  }
}

const spoken = (place) => `${$("h4", place).textContent}: ${$(".text", place).textContent}`;

// The mixture

async function mix(signal) {
  const [one, other] = written().map((task) => task.adapter.id);
  await api.mix(mixture, [{ name: one, weight: 1 - share() }, { name: other, weight: share() }], signal);
  mixed = true;
}

async function slide() {
  const place = $("#turns .turn .mixture");
  if (!asked || !place) return;
  const title = ($("h4", place).textContent = mixtureTitle());
  await answer(place, { id: mixture, mixed: true }, asked);
  if (title === mixtureTitle()) say(spoken(place));
}

// The page

function askForKey() {
  $("#key-form").hidden = false;
  $("#key").focus();
}

async function begin() {
  const found = await api.get("/v1/examples");
  base = found.base;
  $("#base").textContent = base;
  $("#examples").replaceChildren(
    ...found.examples.map((example) => {
      const chip = element("button", example.description, { type: "button" });
      chip.classList.add("quiet");
      chip.addEventListener("click", () => {
        const empty = tasks.find((task) => !$("textarea", task.element).value.trim()) ?? tasks.at(-1);
        $("textarea", empty.element).value = example.description;
        $("#message").value = example.input;
        $("form", empty.element).requestSubmit();
      });
      return chip;
    }),
  );
}

if (location.hash.startsWith("#key=")) {
  api.useKey(decodeURIComponent(location.hash.slice("#key=".length)));
  history.replaceState(null, "", location.pathname); // so that it is in no bookmark
}
addTask();
$("#compare").addEventListener("click", () => $("textarea", addTask().element).focus());
$("#chat").addEventListener("submit", (event) => {
  event.preventDefault();
  const message = $("#message").value.trim();
  if (message && !$("#send").disabled) ask(message);
});
$("#message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); $("#chat").requestSubmit(); }
});
$("#stop").addEventListener("click", () => { for (const controller of active) controller.abort(); });
$("#share").addEventListener("input", () => { $("#share-shown").textContent = `${$("#share").value}%`; });
$("#share").addEventListener("change", slide);
for (const button of document.querySelectorAll("#between .download")) {
  button.addEventListener("click", async () => {
    try {
      await mix();
      await download(button, $("#between"), mixture, mixtureTitle());
    } catch (error) {
      problem($("#between"), error);
    }
  });
}
$("#key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  try {
    api.useKey($("#key").value);
    begin().then(() => { $("#key-form").hidden = true; }).catch((error) => problem($("#key-form"), error));
  } catch (error) {
    problem($("#key-form"), error);
  }
});
addEventListener("pagehide", () => { if (mixed) api.forget(mixture).catch(() => {}); });
begin().catch((error) => problem(error instanceof api.KeyWanted ? $("#key-form") : $("#chat"), error));
