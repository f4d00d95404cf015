// The sentence and the tiles of the experts page, as the frame itself tells them: one step with the map below them.
//
// Until the frame comes, and for good where a run has ended, what the page was drawn with stands here.

import { moment } from "./moment.js"

const SIGNS = { warn: "!", fault: "×", nodata: "?" }

export const sentence = {
  dom: true,

  draw(view) {
    const told = shown(view, "sentence") ?? {}
    const line = made("p", "tt-said")
    if (SIGNS[told.level]) line.append(glyph(told.level))
    line.append(made("b", "", told.lead), made("span", "", told.rest))
    put(view, line)
  },
}

export const tiles = {
  dom: true,

  draw(view) {
    const row = made("div", "tt-tiles")
    for (const tile of (shown(view, "tiles") ?? []).slice(0, 7)) row.append(tileOf(tile))
    row.style.setProperty("--tt-count", Math.max(1, row.childElementCount))
    put(view, row)
  },
}

// The page's own words for a run that has ended are the last ones; a replayed step speaks for itself.
const shown = (view, name) => (view.live || moment.step !== null ? view.frame?.header[name] : null) ?? view.data.first

function tileOf({ label, value, unit, context, level }) {
  const tile = made("div", "tt-tile")
  const name = made("label", "", label)
  if (SIGNS[level]) name.prepend(glyph(level))
  const figure = made("div")
  figure.append(made("b", "", value), made("span", "", unit))
  tile.append(name, figure, made("small", "", context))
  tile.title = context ?? ""
  return tile
}

const glyph = (level) => made("i", `tt-glyph tt-${level}`, SIGNS[level])

export function put(view, child) {
  view.canvas.hidden = true
  view.readout.hidden = false
  view.readout.style.opacity = view.stale ? 0.45 : 1
  view.readout.dataset.step = view.frame?.header.step ?? ""
  // What stands there already stays, and with it the focus.
  if (child.parentElement !== view.readout) view.readout.replaceChildren(child)
}

// A sentence in the picture's place, where there is nothing to draw; and the picture again.
export function none(view, words) {
  put(view, made("div", "tt-none", words))
}

export function some(view) {
  view.canvas.hidden = false
  view.readout.hidden = !view.kind.words
  view.readout.style.opacity = 1
}

function made(kind, css = "", words = "") {
  const found = document.createElement(kind)
  if (css) found.className = css
  found.textContent = words ?? ""
  return found
}
