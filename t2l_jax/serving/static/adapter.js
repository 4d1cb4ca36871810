// What there is to see of an adapter: how much it changes in which layer, and which trained descriptions are near.

import { $, element } from "./elements.js";

export function drawNorms(root, { norms }) {
  const most = Math.max(...Object.values(norms).flat(), Number.MIN_VALUE);
  const layers = Object.values(norms)[0].length;
  const strips = Object.entries(norms).flatMap(([name, values]) => {
    const [least, largest] = [Math.min(...values), Math.max(...values)];
    const range = `${short(least)} to ${short(largest)}`;
    const label = `${name}: ${range}, largest in layer ${values.indexOf(largest)}`;
    return [element("p", `${name}, ${range}`), strip(values.map((value) => value / most), label)];
  });
  $(".strips", root).replaceChildren(...strips);
  $(".axis", root).textContent = `Layer 0 on the left, layer ${layers - 1} on the right; the stronger the colour, the larger.`;
  fill($("table", root), norms, layers);
}

const short = (value) => (value < 1e6 ? value.toFixed(2) : value.toExponential(1));

// A row of cells that are the more opaque, the larger their values from 0 to 1.
function strip(values, label) {
  const svg = svgElement("svg", { viewBox: `0 0 ${values.length} 1`, preserveAspectRatio: "none", role: "img", "aria-label": label });
  values.forEach((value, layer) => {
    svg.append(svgElement("rect", { x: layer + 0.05, y: 0, width: 0.9, height: 1, "fill-opacity": value.toFixed(3) }));
  });
  return svg;
}

function svgElement(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function fill(table, norms, layers) {
  table.replaceChildren();
  table.createTHead().insertRow().append(...["layer", ...Object.keys(norms)].map((name) => element("th", name, { scope: "col" })));
  const body = table.createTBody();
  for (let layer = 0; layer < layers; layer++) {
    const cells = Object.values(norms).map((values) => element("td", short(values[layer])));
    body.insertRow().append(element("th", layer, { scope: "row" }), ...cells);
  }
}

export function drawNearest(root, { nearest, near }) {
  $(".nearest", root).hidden = !nearest;
  $(".far", root).hidden = near !== false;
  const items = (nearest ?? []).map((found) => element("li", `${found.description} (similarity ${found.similarity.toFixed(2)})`));
  $(".nearest ol", root).replaceChildren(...items);
}
