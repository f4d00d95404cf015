// The heatmap as a table: the same frame in words and numbers, a row a layer. A real table, not a picture of one.

import { isSilent } from "./experts.js"
import { two } from "./paint.js"

const HEADS = ["layer", "CV ÷ floor", "over 64 steps", "fullest expert", "emptiest expert", "dead", "skip share", "lag-1", "spread of b"]

export const layers = {
  dom: true,

  draw(view) {
    view.canvas.hidden = true
    if (!view.frame) return
    const { layers: count } = view.frame.header
    const table = document.createElement("table")
    const head = table.createTHead().insertRow()
    for (const name of HEADS) head.append(cell("th", name))
    const body = table.createTBody()
    for (let layer = 0; layer < count; layer++) {
      const row = body.insertRow()
      row.append(...rowOf(view.frame, layer).map((words) => cell("td", words)))
      if (layer === view.data.layer) row.className = "chosen"
      row.onclick = () => view.component.setTriggerValue("pick", { layer, expert: null })
    }
    view.readout.hidden = false
    view.readout.replaceChildren(table)
  },
}

function cell(kind, words) {
  const made = document.createElement(kind)
  made.textContent = words
  return made
}

function rowOf(frame, layer) {
  const { slots, experts, layers: count } = frame.header
  const name = two(layer, count)
  if (isSilent(frame, layer)) return [name, "no data", "–", "–", "–", "–", "–", "–", "–"]
  const { counts, bias, dead, cv_floor: cv, mean_floor: mean, lag1 } = frame.arrays
  const at = (values, slot) => values.values[layer * slots + slot]
  let [all, real, full, empty, lost, low, high] = [0, 0, 0, 0, 0, Infinity, -Infinity]
  for (let slot = 0; slot < slots; slot++) {
    all += at(counts, slot)
    if (slot >= experts) continue
    real += at(counts, slot)
    lost += at(dead, slot) > 0
    if (at(counts, slot) > at(counts, full)) full = slot
    if (at(counts, slot) < at(counts, empty)) empty = slot
    low = Math.min(low, at(bias, slot))
    high = Math.max(high, at(bias, slot))
  }
  const times = (slot) => `${slot}: ${((at(counts, slot) * experts) / real).toFixed(2)}×`
  const lag = lag1.values[layer]
  const over = Number.isFinite(mean.values[layer]) ? `${mean.values[layer].toFixed(2)}×` : "–"
  return [
    name, `${cv.values[layer].toFixed(2)}×`, over, times(full), times(empty), String(lost), `${((1 - real / all) * 100).toFixed(2)} %`,
    Number.isFinite(lag) ? lag.toFixed(2).replace("-", "−") : "–", (high - low).toPrecision(3),
  ]
}
