// The server's endpoints. What goes wrong is an Error whose message is a sentence for whoever sits at the page.

const STORE = "t2l-key";
let key = sessionStorage.getItem(STORE);

export class KeyWanted extends Error {}

export function useKey(value) {
  if (!/^[\x20-\x7e]+$/.test(value)) throw new Error("A key consists of letters, digits and signs without accents.");
  key = value;
  sessionStorage.setItem(STORE, value);
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

async function send(path, { method = "GET", body, signal, keepalive } = {}) {
  const headers = {};
  if (key !== null) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let reply;
  try {
    reply = await fetch(path, { method, headers, signal, keepalive, body: body && JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  if (reply.ok) return reply;
  const said = await reply.json().catch(() => null);
  const message = sentence(said?.error?.message ?? `the server answered with status ${reply.status}`);
  throw reply.status === 401 ? new KeyWanted(message) : new Error(message);
}

const at = (name, part = "") => `/v1/adapters/${encodeURIComponent(name)}${part}`;

export const get = async (path) => (await send(path)).json();
export const describe = async (description) =>
  (await send("/v1/adapters", { method: "POST", body: { description } })).json();
export const mix = (name, shares, signal) =>
  send("/v1/adapters", { method: "POST", body: { name, mix: shares, replace: true }, signal });
export const norms = (name) => get(at(name, "/norms"));
export const nearest = (name) => get(at(name, "/nearest"));
export const forget = (name) => send(at(name), { method: "DELETE", keepalive: true });
export const file = async (name, part) => (await send(at(name, `/${part}`))).blob();

// The pieces of an answer as they come.
export async function* answer(model, message, signal) {
  const body = { model, messages: [{ role: "user", content: message }], temperature: 0, stream: true };
  const reply = await send("/v1/chat/completions", { method: "POST", body, signal });
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("The answer broke off: the server has stopped.");
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
