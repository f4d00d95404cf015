// One measure of all GPUs: its histogram stands on its colour scale, so it is the legend of the grid's colours too.

import { MEASURES, namesOf } from "./fleet_cells.js"
import { css, grouped, sequenceColor, text } from "./paint.js"

const BINS = 60
const TOP = 4
const HIGH = 40
const SCALE = 5

export const histogram = {
  draw(view) {
    const { tokens, data } = view
    const context = view.begin(TOP + HIGH + SCALE + 22)
    const { from, to, unit } = MEASURES[data.measure]
    const { bins, count, total } = view.frame ? binned(view.frame, data.measure) : { bins: new Array(BINS).fill(0), count: 0, total: 0 }
    const wide = view.width / BINS
    const most = Math.max(1, ...bins)
    bins.forEach((value, bin) => {
      const color = sequenceColor(tokens, (bin + 0.5) / BINS)
      context.fillStyle = css(color)
      context.fillRect(bin * wide, TOP + HIGH + 2, Math.ceil(wide), SCALE)
      if (!value) return
      const high = Math.max(2, Math.sqrt(value / most) * HIGH)
      context.fillRect(bin * wide, TOP + HIGH - high, Math.max(1, wide - 1), high)
    })
    const marks = 5
    for (let mark = 0; mark < marks; mark++) {
      const value = from + ((to - from) * mark) / (marks - 1)
      const align = mark === 0 ? "left" : mark === marks - 1 ? "right" : "center"
      const words = `${Math.round(value)}${mark === marks - 1 && unit ? ` ${unit}` : ""}`
      text(context, words, (view.width * mark) / (marks - 1), TOP + HIGH + SCALE + 13, tokens.muted, { align, size: 10.5 })
    }
    view.summary = { count, total }
  },

  label(view) {
    const { title, unit } = MEASURES[view.data.measure]
    const { count, total } = view.summary ?? { count: 0, total: 0 }
    if (!count) return `${title}: no data`
    const mean = `mean ${(total / count).toFixed(0)} ${unit}`
    return `${title} of ${count} GPUs, ${mean}${view.data.measure === "power" ? `, total ${grouped(total / 1000)} kW` : ""}`
  },
}

function binned(frame, measure) {
  const { from, to, array } = MEASURES[measure]
  const bins = new Array(BINS).fill(0)
  const values = frame.arrays[array]?.values ?? []
  const states = frame.arrays.state.values
  let [count, total] = [0, 0]
  values.forEach((value, index) => {
    if (!Number.isFinite(value) || namesOf(frame)[states[index]] === "nodata") return
    const bin = Math.floor(((value - from) / (to - from)) * BINS)
    bins[Math.max(0, Math.min(BINS - 1, bin))] += 1
    count += 1
    total += value
  })
  return { bins, count, total }
}
