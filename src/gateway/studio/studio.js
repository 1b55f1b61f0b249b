// The studio: composes a request, shows the picture while it comes into being, keeps what was made.
// Whatever a person or the network wrote is set as text, never as markup.

import * as api from "./api.js";
import { Easel } from "./easel.js";
import * as gallery from "./gallery.js";
import { askKey, keyDialog, showAccount, takeKeyFromAddress } from "./key.js";
import { EASEL_PARTS, MODES, markTab, showTabs } from "./modes.js";
import * as network from "./network.js";
import { Tile } from "./tile.js";

const IDEAS = ["a red apple", "a blue heart", "a rocket", "a smiling cat", "a sunflower", "a slice of pizza", "a snowman", "a rainbow"];
const SETTINGS = "argus.settings";
const THEME = "argus.theme";
const MOST_PICTURES = 10;
const SLIDERS = ["steps", "guidance", "strength", "scale", "brush"];

const at = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });

/** All models that do something the studio offers, and those of the mode. */
let offered = [];
let models = [];
let mode = MODES[0];
/** @type {Easel} */
let easel;
let count = 1;
/** The request that runs: {abort, tiles, begun}. */
let running;
/** The picture that is shown with its parameters. */
let shown;
let ticking;
let retrying;

// ---------------------------------------------------------------------------------------------- start

async function start() {
  at("theme").addEventListener("click", switchTheme);
  at("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    make();
  });
  at("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      make();
    }
  });
  at("prompt").addEventListener("input", counted);
  at("stop").addEventListener("click", stop);
  for (const [id, change] of [["count-less", -1], ["count-more", 1]]) {
    at(id).addEventListener("click", () => {
      setCount(count + change);
      remember();
    });
  }
  at("model").addEventListener("change", () => {
    fitControls();
    remember();
  });
  for (const id of SLIDERS) at(id).addEventListener("input", showValues);
  for (const id of ["steps", "guidance", "width", "height", "negative"]) at(id).addEventListener("change", remember);
  at("reset").addEventListener("click", () => {
    at("negative").value = "";
    fitControls({});
    remember();
  });
  at("reuse").addEventListener("click", reuse);
  at("continue").addEventListener("click", workOnShown);
  setEaselUp();
  at("remove").addEventListener("click", removeShown);
  at("gallery-clear").addEventListener("click", clearGallery);
  at("trouble-close").addEventListener("click", closeTrouble);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && running && !at("key-dialog").open) stop();
  });
  keyDialog(closeTrouble);
  ideas();
  counted();
  network.watch();
  await Promise.allSettled([loadModels(), showGallery(), showAccount()]);
  document.documentElement.dataset.ready = "true";
}

function ideas() {
  at("ideas").replaceChildren(
    ...IDEAS.map((idea) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "chip";
      button.textContent = idea;
      button.addEventListener("click", () => {
        at("prompt").value = idea;
        counted();
        at("prompt").focus();
      });
      return button;
    }),
  );
}

function switchTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
  setTheme(now === "dark" ? "light" : "dark");
}

function setTheme(theme) {
  if (theme !== "light" && theme !== "dark") return;
  document.documentElement.dataset.theme = theme;
  write(THEME, theme);
}

function read(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

function write(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    // Nothing is kept then.
  }
}

// ------------------------------------------------------------------------------------------- controls

async function loadModels() {
  try {
    offered = await api.models();
  } catch (error) {
    trouble(error);
    return;
  }
  const tasks = new Set(offered.flatMap((model) => model.tasks));
  let kept = {};
  try {
    kept = JSON.parse(read(SETTINGS) ?? "{}");
  } catch {
    // Settings of another version are worth nothing.
  }
  const wanted = MODES.find((one) => one.task === kept.task && tasks.has(one.task));
  mode = wanted ?? MODES.find((one) => tasks.has(one.task)) ?? MODES[0];
  showTabs(at("tabs"), tasks, mode, enter);
  if (typeof kept.negative === "string") at("negative").value = kept.negative;
  setCount(kept.count ?? 1);
  fitMode(kept);
}

/** Goes over to another task. */
function enter(wanted) {
  if (running) return;
  const kept = settings();
  mode = wanted;
  markTab(at("tabs"), mode);
  closeTrouble();
  fitMode(kept);
  remember();
}

/** Shows what the mode needs, and the models that do it. */
function fitMode(wanted) {
  models = offered.filter((model) => model.tasks.includes(mode.task));
  at("ask").textContent = mode.title;
  at("source").hidden = !mode.easel;
  at("words").hidden = !mode.words;
  at("count-field").hidden = !mode.words;
  at("settings").hidden = !mode.words;
  at("ideas").hidden = Boolean(mode.easel);
  for (const part of EASEL_PARTS) at(`part-${part}`).hidden = !mode.parts.includes(part);
  easel.use(mode.easel ?? "picture");
  showEasel();
  at("model").replaceChildren(
    ...models.map((model) => {
      const option = document.createElement("option");
      option.value = model.id;
      option.textContent = model.miners === 0 ? `${model.id} (no miner yet)` : model.id;
      option.title = model.description;
      return option;
    }),
  );
  if (models.some((model) => model.id === wanted.model)) at("model").value = wanted.model;
  at("make-label").textContent = restingLabel();
  fitControls(wanted);
}

const restingLabel = () => (mode.task === "nsfw-classification" ? "Check it" : "Make it");

function model() {
  return models.find((model) => model.id === at("model").value);
}

/** Gives every control the range of the model, and the values wanted where they fit. */
function fitControls(wanted = settings()) {
  const factors = model()?.upscale?.factors ?? [];
  at("factor").replaceChildren(
    ...factors.map((factor) => {
      const option = document.createElement("option");
      option.value = factor;
      option.textContent = `${factor} times each side`;
      return option;
    }),
  );
  showValues();
  const limits = model()?.generation;
  if (!limits) return;
  [at("strength").min, at("strength").max] = [limits.strength.min, limits.strength.max];
  if (mode.task === "inpaint") at("strength").value = limits.strength.max;
  else if (mode.task === "image-to-image") at("strength").value = limits.strength.default;
  for (const [id, fallback] of [["steps", 1], ["guidance", 0.1]]) {
    const { min, max, step, default: usual } = limits[id];
    const input = at(id);
    [input.min, input.max, input.step] = [min, max, step || fallback];
    input.value = fits(limits[id], wanted[id]) ? wanted[id] : usual;
    input.disabled = min === max;
  }
  for (const id of ["width", "height"]) {
    const { min, max, step, default: usual } = limits[id];
    const values = [];
    for (let value = min; value <= max; value += step || max) values.push(value);
    at(id).replaceChildren(
      ...values.map((value) => {
        const option = document.createElement("option");
        option.value = value;
        option.textContent = `${value} px`;
        return option;
      }),
    );
    at(id).value = fits(limits[id], wanted[id]) ? wanted[id] : usual;
    at(id).disabled = values.length === 1;
  }
  showValues();
  counted();
}

function fits({ min, max }, value) {
  return typeof value === "number" && value >= min && value <= max;
}

function settings() {
  return {
    task: mode.task,
    model: at("model").value,
    negative: at("negative").value,
    steps: Number(at("steps").value),
    guidance: Number(at("guidance").value),
    width: Number(at("width").value),
    height: Number(at("height").value),
    count,
  };
}

function remember() {
  write(SETTINGS, JSON.stringify(settings()));
}

function showValues() {
  for (const id of SLIDERS) {
    const input = at(id);
    at(`${id}-value`).textContent = number.format(input.value);
    const share = (input.value - input.min) / (input.max - input.min || 1);
    input.style.setProperty("--share", share);
  }
}

function setCount(wanted) {
  count = Math.min(Math.max(Math.trunc(wanted) || 1, 1), MOST_PICTURES);
  at("count").textContent = count;
  at("count-less").disabled = count === 1;
  at("count-more").disabled = count === MOST_PICTURES;
}

function counted() {
  const limit = model()?.generation?.prompt_bytes;
  const length = new TextEncoder().encode(at("prompt").value).length;
  const close = limit && length > limit * 0.7;
  at("prompt-count").textContent = close ? `${length} / ${limit}` : "";
  at("prompt-count").classList.toggle("over", Boolean(limit) && length > limit);
}

// -------------------------------------------------------------------------------------------- request

async function make() {
  if (running) return;
  closeTrouble();
  if (mode.easel && !easel.isReady) {
    at("easel-hint").textContent = easelHint();
    (easel.picture || mode.easel === "scribble" ? at("easel") : at("file")).focus();
    return;
  }
  if (mode.words && !at("prompt").value.trim()) at("prompt").value = at("prompt").placeholder;
  if (!api.storedKey()) {
    askKey("Pictures need a key: paste yours.", make);
    return;
  }
  const wanted = settings();
  const body = mode.words ? wordsOf(wanted) : { model: wanted.model };
  if (!mode.words) wanted.count = 1;
  if (mode.easel) [wanted.width, wanted.height] = [at("easel").width, at("easel").height];
  begin(wanted);
  const request = running;
  try {
    await addPictures(body);
    if (mode.task === "nsfw-classification") {
      await check(request, body);
      end(request);
      return;
    }
    const handle = {
      progress: (event) => progress(request, event),
      completed: (event) => completed(request, event, body),
      blocked: (event) => request.tiles[event.index]?.blocked(),
    };
    await api.generate(api.storedKey(), mode.path, body, handle, request.abort.signal);
    announce(request.done === 1 ? "The picture is ready." : `${request.done} pictures are ready.`);
  } catch (error) {
    if (error.name === "AbortError") announce("Stopped.");
    else trouble(error);
  }
  end(request);
}

function wordsOf(wanted) {
  const body = {
    model: wanted.model,
    prompt: at("prompt").value.trim(),
    n: wanted.count,
    size: mode.easel ? "auto" : `${wanted.width}x${wanted.height}`,
    steps: wanted.steps,
    guidance: wanted.guidance,
  };
  if (wanted.negative.trim()) body.negative_prompt = wanted.negative.trim();
  return body;
}

/** What the mode needs besides words. */
async function addPictures(body) {
  const value = (id) => Number(at(id).value);
  if (mode.parts.includes("strength")) body.strength = value("strength");
  switch (mode.task) {
    case "inpaint":
      body.image = await easel.pictureText();
      body.mask = await easel.marksText();
      break;
    case "uncrop":
      body.image = await easel.pictureText();
      for (const side of ["left", "right", "top", "bottom"]) body[side] = Math.max(0, Math.trunc(value(`pad-${side}`)) || 0);
      break;
    case "scribble":
      body.scribble = easel.isMarked
        ? { image: await easel.marksText(), prepared: true, scale: value("scale") }
        : { image: await easel.pictureText(), prepared: false, scale: value("scale") };
      break;
    case "canny":
    case "depth":
      // Edges are drawn by the miner; not every one can see depth, so a depth map is sent.
      body[mode.task] = { image: await easel.pictureText(), prepared: mode.task === "depth", scale: value("scale") };
      break;
    case "upscale":
      body.image = await easel.pictureText();
      body.factor = value("factor");
      break;
    case "nsfw-classification":
      body.input = [await easel.pictureText()];
      break;
    case "image-to-image":
      body.image = await easel.pictureText();
      break;
  }
}

/** Has the picture judged, and shows the verdict beside it. */
async function check(request, body) {
  const picture = new Blob([Uint8Array.from(atob(body.input[0]), (character) => character.charCodeAt(0))], { type: "image/png" });
  const answer = await api.post(api.storedKey(), mode.path, body, request.abort.signal);
  const { nsfw, scores } = answer.data[0];
  const verdict = nsfw ? "Not safe for work" : "Safe for work";
  const classes = Object.entries(scores).sort(([, a], [, b]) => b - a);
  request.done += 1;
  request.tiles[0].completed(picture, verdict);
  about({
    blob: picture,
    prompt: verdict,
    facts: [
      ...classes.map(([name, share]) => [name.charAt(0).toUpperCase() + name.slice(1), `${number.format(share * 100)} %`]),
      ["Model", answer.model],
      ["Time", `${(answer.elapsed_ms / 1000).toFixed(2)} s`],
      ["Miner", answer.miner ? network.short(answer.miner) : "this node", answer.miner],
    ],
  });
  announce(`${verdict}.`);
}

// ---------------------------------------------------------------------------------------------- easel

function setEaselUp() {
  easel = new Easel(at("easel"), showEasel);
  at("brush").addEventListener("input", () => {
    easel.brush = Number(at("brush").value);
    easel.show();
  });
  at("file").addEventListener("change", () => take(at("file").files[0]));
  at("easel-last").addEventListener("click", () => take(shown?.blob));
  at("easel-clear").addEventListener("click", () => easel.clear());
  at("easel-drop").addEventListener("click", () => {
    at("file").value = "";
    easel.drop();
  });
  const box = at("source");
  box.addEventListener("dragover", (event) => event.preventDefault());
  box.addEventListener("drop", (event) => {
    event.preventDefault();
    take(event.dataTransfer.files[0]);
  });
}

async function take(blob) {
  if (!blob) return;
  try {
    await easel.take(blob);
  } catch {
    at("easel-hint").textContent = "That is no picture this browser can read: take a PNG, JPEG or WebP file.";
  }
}

function showEasel() {
  const drawing = easel.draws;
  const blank = !easel.picture && easel.kind !== "scribble";
  at("easel").hidden = blank;
  at("easel-empty").hidden = !blank;
  at("easel").dataset.draws = drawing;
  at("easel").setAttribute("aria-label", drawing ? "Your picture to draw on: arrow keys move the brush, Space lowers and lifts it" : "Your picture");
  at("easel-clear").hidden = !easel.isMarked;
  at("easel-drop").hidden = !easel.picture;
  at("easel-hint").textContent = easelHint();
  at("easel-last").disabled = !shown?.blob;
}

function easelHint() {
  if (easel.kind === "mask") {
    if (!easel.picture) return "Choose a picture, then paint over what should be made anew.";
    return easel.isMarked ? "What is painted white is made anew." : "Paint over what should be made anew.";
  }
  if (easel.kind === "scribble") return easel.isMarked ? "" : "Draw, or choose a picture whose outline is taken.";
  if (mode.task === "depth") return "A depth map: what is near is bright.";
  return easel.picture ? "" : "Choose a picture first.";
}

/** Puts the picture on the stage on the easel. */
async function workOnShown() {
  if (!shown || running) return;
  await take(shown.blob);
  if (!mode.easel) {
    const next = MODES.find((one) => one.easel && offered.some((model) => model.tasks.includes(one.task)));
    if (next) enter(next);
  }
  at("source").scrollIntoView({ block: "nearest", behavior: calm() ? "auto" : "smooth" });
  at("tabs").querySelector("[aria-selected=true]")?.focus();
}

function begin(wanted) {
  const tiles = Array.from({ length: wanted.count }, () => new Tile(wanted.width, wanted.height));
  running = { abort: new AbortController(), tiles, begun: performance.now(), done: 0, order: wanted };
  at("about").hidden = true;
  at("empty").hidden = true;
  showTiles(tiles);
  at("running").hidden = false;
  at("stop").hidden = false;
  at("make").disabled = true;
  at("make-label").textContent = wanted.count === 1 ? "Making it…" : "Making them…";
  at("frame").setAttribute("aria-busy", "true");
  setBar(0, "Asking the network…");
  announce("Asking the network for a picture.");
  ticking = setInterval(tick, 100);
  tick();
  if (matchMedia("(max-width: 60rem)").matches) at("stage").scrollIntoView({ block: "nearest", behavior: calm() ? "auto" : "smooth" });
}

const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

function end(request) {
  clearInterval(ticking);
  at("running").hidden = true;
  at("stop").hidden = true;
  at("make").disabled = false;
  at("make-label").textContent = restingLabel();
  at("frame").removeAttribute("aria-busy");
  running = undefined;
  const left = request.tiles.filter((tile) => tile.finished);
  for (const tile of request.tiles) tile.rest();
  if (left.length > 0) showTiles(left);
  else if (shown) put(shown);
  else clearStage();
  showAccount();
}

function stop() {
  clearTimeout(retrying);
  running?.abort.abort();
}

function showTiles(tiles) {
  at("tiles").hidden = false;
  at("tiles").dataset.many = tiles.length > 1;
  at("tiles").style.setProperty("--columns", Math.ceil(Math.sqrt(tiles.length)));
  at("tiles").replaceChildren(...tiles.map((tile) => tile.element));
}

function progress(request, event) {
  const tile = request.tiles[event.index];
  tile?.progress(event.of > 0 ? event.step / event.of : 0);
  if (tile) tile.event = event;
  const shares = request.tiles.map((tile) => tile.share);
  const share = shares.reduce((sum, share) => sum + share, 0) / shares.length;
  setBar(share, phase(request, event));
}

function phase(request, event) {
  if (event.queue_position > 0) return `In the queue, ${event.queue_position} before you`;
  const attempt = event.attempt > 1 ? `Another miner took over. ` : "";
  if (event.step === 0) return `${attempt}A miner has it…`;
  if (request.tiles.length === 1) return `${attempt}Step ${event.step} of ${event.of}`;
  return `${attempt}${request.done} of ${request.tiles.length} ready`;
}

function setBar(share, text) {
  const percent = Math.round(share * 100);
  at("bar").setAttribute("aria-valuenow", percent);
  at("bar").setAttribute("aria-valuetext", text);
  at("bar").style.setProperty("--share", share);
  at("phase").textContent = text;
}

function tick() {
  if (running) at("clock").textContent = `${((performance.now() - running.begun) / 1000).toFixed(1)} s`;
}

function announce(text) {
  at("announce").textContent = text;
}

async function completed(request, event, body) {
  const bytes = Uint8Array.from(atob(event.b64_json), (character) => character.charCodeAt(0));
  const picture = {
    blob: new Blob([bytes], { type: "image/png" }),
    prompt: body.prompt ?? `${event.factor} times as large`,
    task: event.task,
    negative: body.negative_prompt ?? "",
    model: event.model,
    size: event.size,
    steps: event.steps,
    guidance: event.guidance,
    seed: event.seed,
    miner: event.miner,
    elapsed_ms: event.elapsed_ms,
    made_ms: event.created_at * 1000,
  };
  request.done += 1;
  const tile = request.tiles[event.index];
  tile.completed(picture.blob, picture.prompt);
  tile.element.addEventListener("click", () => about(picture));
  const shares = request.tiles.map((tile) => tile.share);
  setBar(shares.reduce((sum, share) => sum + share, 0) / shares.length, `${request.done} of ${request.tiles.length} ready`);
  about(picture);
  try {
    picture.id = await gallery.keep({ ...picture });
    at("remove").hidden = shown?.id === undefined;
    await showGallery();
  } catch {
    at("gallery-hint").textContent = "This browser keeps no pictures; download what you like.";
  }
}

// -------------------------------------------------------------------------------------------- picture

let downloadUrl;

/** Shows what a picture was made of, and by whom. */
function about(picture) {
  shown = picture;
  at("about").hidden = false;
  at("about-prompt").textContent = picture.prompt;
  at("easel-last").disabled = false;
  at("continue").hidden = !offered.some((model) => MODES.some((one) => one.easel && model.tasks.includes(one.task)));
  at("reuse").hidden = picture.steps === undefined;
  const facts = picture.facts ?? [
    ["Model", picture.model],
    ["Task", picture.task ?? "text-to-image"],
    ["Size", picture.size.replace("x", " × ")],
    ...(picture.steps === undefined ? [] : [["Steps", number.format(picture.steps)], ["Guidance", number.format(picture.guidance)]]),
    ...(picture.seed === null || picture.seed === undefined ? [] : [["Seed", String(picture.seed)]]),
    ["Time", `${(picture.elapsed_ms / 1000).toFixed(2)} s`],
    ["Miner", picture.miner ? network.short(picture.miner) : "this node", picture.miner],
  ];
  if (picture.negative) facts.push(["Left out", picture.negative]);
  at("about-facts").replaceChildren(
    ...facts.map(([name, value, title]) => {
      const group = document.createElement("div");
      const term = document.createElement("dt");
      const definition = document.createElement("dd");
      term.textContent = name;
      definition.textContent = value;
      if (title) definition.title = title;
      group.append(term, definition);
      return group;
    }),
  );
  if (downloadUrl) URL.revokeObjectURL(downloadUrl);
  downloadUrl = URL.createObjectURL(picture.blob);
  at("download").href = downloadUrl;
  const slug = picture.prompt.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 40);
  at("download").download = `${slug || "argus"}${picture.seed ? `-${picture.seed}` : ""}.png`;
  at("remove").hidden = picture.id === undefined;
}

function reuse() {
  if (!shown) return;
  const again = MODES.find((one) => one.task === (shown.task ?? "text-to-image"));
  if (again !== mode && offered.some((model) => model.tasks.includes(again.task))) enter(again);
  at("prompt").value = shown.prompt;
  at("negative").value = shown.negative;
  if (models.some((model) => model.id === shown.model)) at("model").value = shown.model;
  const [width, height] = shown.size.split("x").map(Number);
  fitControls({ steps: shown.steps, guidance: shown.guidance, width, height });
  counted();
  remember();
  at("settings").open = true;
  at("prompt").focus();
}

// -------------------------------------------------------------------------------------------- gallery

let thumbUrls = [];

async function showGallery() {
  const pictures = await gallery.all();
  for (const url of thumbUrls) URL.revokeObjectURL(url);
  thumbUrls = [];
  at("gallery-none").hidden = pictures.length > 0;
  at("gallery-clear").hidden = pictures.length === 0;
  at("thumbs").replaceChildren(
    ...pictures.map((picture) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-label", `Show ${picture.prompt}`);
      const image = document.createElement("img");
      const url = URL.createObjectURL(picture.blob);
      thumbUrls.push(url);
      image.src = url;
      image.alt = "";
      image.loading = "lazy";
      const caption = document.createElement("span");
      caption.textContent = picture.prompt;
      button.append(image, caption);
      button.addEventListener("click", () => look(picture));
      item.append(button);
      return item;
    }),
  );
}

/** Puts a picture of the gallery on the stage. */
function look(picture) {
  if (running) return;
  closeTrouble();
  put(picture);
  at("stage").scrollIntoView({ block: "nearest", behavior: calm() ? "auto" : "smooth" });
}

function put(picture) {
  const [width, height] = picture.size.split("x").map(Number);
  const tile = new Tile(width, height);
  tile.completed(picture.blob, picture.prompt);
  at("empty").hidden = true;
  showTiles([tile]);
  about(picture);
}

async function removeShown() {
  if (shown?.id === undefined) return;
  await gallery.forget(shown.id);
  clearStage();
  await showGallery();
}

async function clearGallery() {
  if (!confirm("Remove all pictures of the gallery from this browser?")) return;
  await gallery.clear();
  clearStage();
  await showGallery();
}

function clearStage() {
  if (running) return;
  shown = undefined;
  at("about").hidden = true;
  at("tiles").hidden = true;
  at("empty").hidden = false;
  at("easel-last").disabled = true;
}

// -------------------------------------------------------------------------------------------- trouble

const TITLES = {
  no_capacity: "Every miner is busy",
  rate_limit_exceeded: "A little too fast",
  concurrency_limit_exceeded: "One at a time",
  insufficient_quota: "No credits left",
  content_policy_violation: "This one stays hidden",
  timed_out: "That took too long",
  miner_failed: "The miners failed",
  unreachable: "The node is away",
  broken: "The connection broke off",
};

/** Says what went wrong and offers what helps. */
function trouble(error) {
  clearTimeout(retrying);
  const act = at("trouble-act");
  at("trouble").hidden = false;
  at("trouble-title").textContent = TITLES[error.code] ?? "That did not work";
  at("trouble-text").textContent = error.message.charAt(0).toUpperCase() + error.message.slice(1);
  if (error.status === 401) {
    at("trouble-title").textContent = "The key does not open this node";
    offer("Change the key", () => askKey("", make));
  } else if (error.retryAfter !== undefined) {
    countDown(error.retryAfter);
  } else if (error.code === "insufficient_quota") {
    offer("Use another key", () => askKey("", make));
  } else if (offered.length === 0) {
    offer("Try again", async () => {
      closeTrouble();
      await loadModels();
    });
  } else {
    offer("Try again", make);
  }
  function offer(label, action) {
    act.textContent = label;
    act.onclick = action;
  }
  function countDown(seconds) {
    offer(`Trying again in ${seconds} s – now`, () => {
      clearTimeout(retrying);
      make();
    });
    retrying = setTimeout(() => (seconds > 1 ? countDown(seconds - 1) : make()), 1000);
  }
}

function closeTrouble() {
  clearTimeout(retrying);
  at("trouble").hidden = true;
}

setTheme(read(THEME));
takeKeyFromAddress();
start();
