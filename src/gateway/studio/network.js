// The network as this node sees it: a line in the header and a table of miners, refreshed while it is looked at.

import * as api from "./api.js";

const EVERY_MS = 5000;

const at = (id) => document.getElementById(id);

let timer;
let period;

export function watch() {
  const look = async () => {
    clearTimeout(timer);
    if (document.visibilityState === "visible") await refresh();
    timer = setTimeout(look, EVERY_MS);
  };
  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "visible") look();
  });
  setInterval(countDown, 1000);
  return look();
}

async function refresh() {
  try {
    show(await api.status());
  } catch {
    summary("bad", "Node unreachable");
  }
}

function summary(state, text) {
  at("network-dot").dataset.state = state;
  at("network-summary").textContent = text;
}

function show(status) {
  const serving = status.miners.filter((miner) => miner.reachable).length;
  const miners = `${serving} ${serving === 1 ? "miner" : "miners"}`;
  if (serving === 0) summary("bad", "No miner yet");
  else if (!status.chain.reachable) summary("warn", `${miners}, chain silent`);
  else summary("good", miners);

  period = status.period;
  const facts = [
    ["Block", status.chain.reachable ? status.chain.block.toLocaleString("en") : "unreachable"],
    ["Weights set at", status.chain.weights_block === null ? "not yet" : status.chain.weights_block.toLocaleString("en")],
    ["Peers", status.peers.toLocaleString("en")],
    ["Period", period ? `#${period.number}` : "–"],
    ["Answers scored", period ? period.scored.toLocaleString("en") : "–"],
    ["Ends in", period ? remaining() : "–", "period-ends"],
  ];
  at("network-facts").replaceChildren(
    ...facts.map(([name, value, id]) => {
      const group = document.createElement("div");
      const term = document.createElement("dt");
      const definition = document.createElement("dd");
      term.textContent = name;
      definition.textContent = value;
      if (id) definition.id = id;
      group.append(term, definition);
      return group;
    }),
  );
  at("network-hint").textContent = status.hotkey ? `Validator ${short(status.hotkey)} on subnet ${status.netuid}` : "";
  at("network-hint").title = status.hotkey ?? "";
  const top = Math.max(...status.miners.map((miner) => miner.score ?? 0), 1e-9);
  at("miners").replaceChildren(...status.miners.map((miner) => row(miner, top)));
  at("miners-none").hidden = status.miners.length > 0;
}

function row(miner, top) {
  const line = document.createElement("tr");
  const head = document.createElement("th");
  head.scope = "row";
  const name = document.createElement("div");
  name.className = "who";
  const dot = document.createElement("span");
  dot.className = "dot";
  dot.dataset.state = miner.reachable ? "good" : "bad";
  const hotkey = document.createElement("code");
  hotkey.textContent = short(miner.hotkey);
  hotkey.title = miner.hotkey;
  const uid = document.createElement("small");
  uid.textContent = `uid ${miner.uid}${miner.reachable ? "" : ", unreachable"}`;
  name.append(dot, hotkey, uid);
  head.append(name);
  line.append(
    head,
    meter(miner.score === null ? 0 : miner.score / top, miner.score === null ? "–" : miner.score.toFixed(3)),
    meter(miner.weight, `${(miner.weight * 100).toFixed(1)} %`, "gold"),
    cell(miner.latency_ms === null ? "–" : `${(miner.latency_ms / 1000).toFixed(2)} s`),
    cell(miner.failed > 0 ? `${miner.answered} answered, ${miner.failed} failed` : `${miner.answered} answered`),
  );
  return line;
}

function cell(text) {
  const cell = document.createElement("td");
  cell.textContent = text;
  return cell;
}

function meter(share, text, colour = "") {
  const cell = document.createElement("td");
  const box = document.createElement("div");
  box.className = `meter ${colour}`;
  const value = document.createElement("span");
  value.textContent = text;
  const bar = document.createElement("i");
  bar.style.setProperty("--share", Math.min(Math.max(share, 0), 1));
  box.append(value, bar);
  cell.append(box);
  return cell;
}

export function short(hotkey) {
  return `${hotkey.slice(0, 6)}…${hotkey.slice(-4)}`;
}

function remaining() {
  const seconds = Math.max(0, Math.round((period.ends_at_ms - Date.now()) / 1000));
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}

function countDown() {
  const ends = at("period-ends");
  if (period && ends) ends.textContent = remaining();
}
