// Pictures that were made in this browser, kept in IndexedDB and nowhere else.

const LIMIT = 200;
const NAME = "argus-studio";
const STORE = "pictures";

let opening;

function open() {
  opening ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id", autoIncrement: true });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opening;
}

async function run(mode, work) {
  const database = await open();
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(STORE, mode);
    const request = work(transaction.objectStore(STORE));
    transaction.oncomplete = () => resolve(request?.result);
    transaction.onabort = () => reject(transaction.error);
    transaction.onerror = () => reject(transaction.error);
  });
}

/** All pictures, newest first. */
export async function all() {
  const pictures = await run("readonly", (store) => store.getAll());
  return pictures.reverse();
}

/** Keeps a picture ({blob, prompt, …}) and returns its id. The oldest go when there are too many. */
export async function keep(picture) {
  const id = await run("readwrite", (store) => store.add(picture));
  const ids = await run("readonly", (store) => store.getAllKeys());
  const old = ids.slice(0, Math.max(0, ids.length - LIMIT));
  if (old.length > 0) {
    await run("readwrite", (store) => {
      for (const key of old) store.delete(key);
    });
  }
  return id;
}

export function forget(id) {
  return run("readwrite", (store) => store.delete(id));
}

export function clear() {
  return run("readwrite", (store) => store.clear());
}
