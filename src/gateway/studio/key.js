// The key: asked for in a dialog, kept in this browser, and what it has left.

import * as api from "./api.js";

const at = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });

let afterKey;

/** Asks for a key; `then` is done once one was accepted. */
export function askKey(message, then) {
  afterKey = then;
  at("key").value = api.storedKey();
  at("key-forget").hidden = !api.storedKey();
  keyState(message, "");
  at("key-dialog").showModal();
  at("key").focus();
}

function keyState(text, state) {
  at("key-state").textContent = text;
  at("key-state").dataset.state = state;
}

/** Sets the dialog up. `kept` is called after a key was accepted. */
export function keyDialog(kept) {
  at("key-open").addEventListener("click", () => askKey("", undefined));
  at("key-cancel").addEventListener("click", () => at("key-dialog").close());
  at("key-show").addEventListener("click", () => {
    const hidden = at("key").type === "password";
    at("key").type = hidden ? "text" : "password";
    at("key-show").textContent = hidden ? "Hide" : "Show";
    at("key-show").setAttribute("aria-pressed", hidden);
  });
  at("key-forget").addEventListener("click", () => {
    api.storeKey("");
    at("key-dialog").close();
    showAccount();
  });
  at("key-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const key = at("key").value.trim();
    if (!key) {
      keyState("Paste a key first.", "bad");
      return;
    }
    keyState("Checking…", "");
    try {
      const account = await api.account(key);
      api.storeKey(key);
      at("key-dialog").close();
      showSummary(account);
      kept();
      const then = afterKey;
      afterKey = undefined;
      then?.();
    } catch (error) {
      keyState(error.message, "bad");
    }
  });
}

/** A link from `argus devnet` may bring a key along: `#key=argus-…`. It is kept and taken out of the address. */
export function takeKeyFromAddress() {
  const key = new URLSearchParams(location.hash.slice(1)).get("key");
  if (!key) return;
  history.replaceState(null, "", location.pathname);
  if (/^argus-[0-9a-f]{64}$/.test(key)) api.storeKey(key);
}

/** Shows what the key has left. */
export async function showAccount() {
  const key = api.storedKey();
  if (!key) {
    at("key-summary").textContent = "Add a key";
    return;
  }
  try {
    showSummary(await api.account(key));
  } catch (error) {
    at("key-summary").textContent = error.status === 401 ? "Key refused" : "Key";
  }
}

function showSummary(account) {
  const left = account.credits_left;
  at("key-summary").textContent = left === null ? account.name : `${number.format(left)} credits`;
  at("key-open").title = `Key of ${account.name}`;
}
