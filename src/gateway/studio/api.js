// Talks to the gateway: JSON requests, the event stream of a picture, errors as the API words them.

const KEY = "argus.key";

/** An error of the API, or of the way to it. */
export class ApiError extends Error {
  constructor(message, code, status, retryAfter) {
    super(message);
    this.code = code;
    this.status = status;
    /** Seconds, when the API said when to come back. */
    this.retryAfter = retryAfter;
  }
}

export function storedKey() {
  try {
    return localStorage.getItem(KEY) ?? "";
  } catch {
    return memoryKey;
  }
}

let memoryKey = "";

export function storeKey(key) {
  memoryKey = key;
  try {
    if (key) localStorage.setItem(KEY, key);
    else localStorage.removeItem(KEY);
  } catch {
    // A browser that keeps nothing still works until the page is closed.
  }
}

function headers(key) {
  return key ? { authorization: `Bearer ${key}` } : {};
}

async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("This node does not answer. Is it still running?", "unreachable", 0);
  }
  if (response.ok) return response;
  const retry = Number.parseInt(response.headers.get("retry-after") ?? "", 10);
  let body;
  try {
    body = await response.json();
  } catch {
    body = {};
  }
  const { message = `The node answered ${response.status}.`, code = "unknown" } = body.error ?? {};
  throw new ApiError(message, code, response.status, Number.isNaN(retry) ? undefined : retry);
}

export async function models() {
  return (await (await request("/v1/models")).json()).data;
}

export async function status() {
  return (await request("/v1/status")).json();
}

/** The account of a key: name, credits left, usage. */
export async function account(key) {
  return (await request("/v1/key", { headers: headers(key) })).json();
}

/** Asks an endpoint that answers with JSON. */
export async function post(key, path, body, signal) {
  const response = await request(path, {
    method: "POST",
    headers: { ...headers(key), "content-type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  return response.json();
}

/**
 * Asks for pictures. Calls `handle.progress`, `handle.completed` and `handle.blocked` with the events' data;
 * resolves when the stream ended as it should.
 */
export async function generate(key, path, body, handle, signal) {
  const response = await request(path, {
    method: "POST",
    headers: { ...headers(key), "content-type": "application/json" },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  let done = false;
  for await (const { name, data } of events(response.body)) {
    if (data === "[DONE]") {
      done = true;
      break;
    }
    const value = JSON.parse(data);
    if (name.endsWith(".progress")) handle.progress(value);
    else if (name.endsWith(".completed")) handle.completed(value);
    else if (name.endsWith(".blocked")) handle.blocked(value);
    else if (name === "error") throw new ApiError(value.error.message, value.error.code, 200);
  }
  if (!done) throw new ApiError("The connection broke off before the picture was there.", "broken", 0);
}

/** Splits a byte stream into server-sent events. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      text += value;
      let end;
      while ((end = text.indexOf("\n\n")) >= 0) {
        const block = text.slice(0, end);
        text = text.slice(end + 2);
        let name = "";
        const data = [];
        for (const line of block.split("\n")) {
          if (line.startsWith("event:")) name = line.slice(6).trim();
          else if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        }
        if (data.length > 0) yield { name, data: data.join("\n") };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
