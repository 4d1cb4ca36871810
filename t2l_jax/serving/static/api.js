// The server's endpoints. What goes wrong is an Error whose message is a sentence for whoever sits at the page.

const STORE = "t2l-key";
let key = sessionStorage.getItem(STORE);

export class KeyWanted extends Error {}

export function useKey(value) {
  if (!/^[\x20-\x7e]+$/.test(value)) throw new KeyWanted("A key consists of letters, digits and signs without accents.");
  key = value;
  sessionStorage.setItem(STORE, value);
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

// What a promise of the browser's gives; if the connection fails, a sentence.
async function reached(promise, message = "The server does not answer. Is it still running?") {
  try {
    return await promise;
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error(message);
  }
}

async function send(path, { method = "GET", body, signal } = {}) {
  const headers = {};
  if (key !== null) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const reply = await reached(fetch(path, { method, headers, signal, body: body && JSON.stringify(body) }));
  if (reply.ok) return reply;
  const said = await reply.json().catch(() => null);
  const message = sentence(said?.error?.message ?? `the server answered with status ${reply.status}`);
  throw reply.status === 401 ? new KeyWanted(message) : new Error(message);
}

const at = (name, part) => `/v1/adapters/${encodeURIComponent(name)}${part}`;
const make = async (body, signal) => reached((await send("/v1/adapters", { method: "POST", body, signal })).json());

export const get = async (path) => reached((await send(path)).json());
export const describe = (description) => make({ description });
export const mix = (shares, signal) => make({ mix: shares }, signal);
export const norms = (name) => get(at(name, "/norms"));
export const nearest = (name) => get(at(name, "/nearest"));
export const file = async (name, part) => reached((await send(at(name, `/${part}`))).blob());

// The pieces of an answer as they come.
export async function* answer(model, message, signal) {
  const body = { model, messages: [{ role: "user", content: message }], temperature: 0, stream: true };
  const reply = await send("/v1/chat/completions", { method: "POST", body, signal });
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  const broken = "The answer broke off: the server has stopped.";
  let rest = "";
  for (;;) {
    const { value, done } = await reached(reader.read(), broken);
    if (done) throw new Error(broken);
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.slice("data: ".length);
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(sentence(chunk.error.message));
      yield chunk.choices[0]?.delta.content ?? "";
    }
  }
}
