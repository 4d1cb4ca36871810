// Short ways to the page's elements.

export const $ = (selector, root = document) => root.querySelector(selector);
export const copy = (id) => $(`#${id}`).content.firstElementChild.cloneNode(true);

export function element(tag, text, attributes = {}) {
  const made = Object.assign(document.createElement(tag), { textContent: text });
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// A button that does nothing for a while keeps the focus, which a disabled one would lose.
export const lock = (button, locked) => button.setAttribute("aria-disabled", locked);
export const isLocked = (button) => button.getAttribute("aria-disabled") === "true";
