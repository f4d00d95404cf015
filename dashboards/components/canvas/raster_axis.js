// The time axis that the three parts of a raster share: where a column stands, where nothing was measured, what happened.

import { grouped, line, text, widthOf } from "./paint.js"

const GAP_FACTOR = 4
const GAP_LEAST = 6

// Columns of equal width by their order, with a wider empty place before each that came much later than usual.
export function axisOf(frame, wide, count) {
  const at = frame.arrays.at_s?.values
  const steps = frame.arrays.steps?.values
  const broken = new Set()
  if (at && count > 3) {
    const distances = []
    for (let column = 1; column < count; column++) distances.push(at[column] - at[column - 1])
    const usual = [...distances].sort((one, other) => one - other)[Math.floor(distances.length / 2)]
    distances.forEach((distance, index) => {
      if (usual > 0 && distance > GAP_FACTOR * usual) broken.add(index + 1)
    })
  }
  for (const mark of frame.header.marks ?? []) if (mark.kind === "restart" && mark.column > 0) broken.add(mark.column)
  const gap = broken.size ? Math.max(GAP_LEAST, Math.min(12, wide / (4 * broken.size))) : 0
  const column = count ? (wide - gap * broken.size) / count : wide
  const starts = []
  const gaps = []
  let x = 0
  for (let index = 0; index < count; index++) {
    if (broken.has(index)) {
      gaps.push([x, x + gap])
      x += gap
    }
    starts.push(x)
    x += column
  }
  return {
    count, at, steps, gaps,
    span: (index) => [starts[index], column + 0.5],
    breaksBefore: (index) => broken.has(index),
    columnAt: (place) => {
      let best = 0
      while (best + 1 < count && starts[best + 1] <= place) best += 1
      return best
    },
  }
}

// A restart is a full line with its name, a change of data a dotted one; both run through all three parts.
export function drawMarks(context, view, plan) {
  const { tokens, frame } = view
  let free = plan.left + 128
  for (const mark of [...(frame.header.marks ?? [])].sort((one, other) => one.column - other.column)) {
    if (!(mark.column >= 0 && mark.column < plan.axis.count)) continue
    const fault = mark.kind === "restart"
    const [start] = plan.axis.span(mark.column)
    const x = plan.left + start - (fault && plan.axis.breaksBefore(mark.column) ? plan.axis.gaps[0][1] - plan.axis.gaps[0][0] : 0)
    line(context, x, plan.top - 4, x, plan.bottom, fault ? tokens.fault : tokens.text, fault ? { width: 1.5 } : { dash: [1.5, 3] })
    const words = `${fault ? "× " : ""}${mark.label ?? mark.kind}`
    const wide = widthOf(context, words, 10.5)
    const beside = x + wide > plan.left + plan.wide ? x - wide / 2 : x
    const from = Math.max(free, Math.min(beside, plan.left + plan.wide - wide))
    free = from + wide + 10
    if (free > plan.left + plan.wide + 20) continue
    text(context, words, from, 8, fault ? tokens["fault-text"] : tokens.muted, { size: 10.5 })
  }
}

// The wall clock above, the step below it.
export function drawTicks(context, view, plan) {
  const { tokens } = view
  const { axis } = plan
  if (!axis.count) return
  const ticks = Math.max(2, Math.min(7, Math.floor(plan.wide / 90)))
  for (let tick = 0; tick < ticks; tick++) {
    const column = Math.round(((tick + 0.5) / ticks) * (axis.count - 1))
    const [start, wide] = axis.span(column)
    const x = plan.left + start + wide / 2
    line(context, x, plan.bottom, x, plan.bottom + 4, tokens["strong-rule"])
    if (axis.at) text(context, clock(axis.at[column], axis.at), x, plan.bottom + 12, tokens.muted, { align: "center", size: 10.5 })
    if (axis.steps) text(context, stepWords(axis.steps[column]), x, plan.bottom + 25, tokens.faint, { align: "center", size: 10.5 })
  }
}

function clock(at, all) {
  const moment = new Date(at * 1000).toISOString()
  return all[all.length - 1] - all[0] < 1800 ? moment.slice(11, 19) : moment.slice(11, 16)
}

const stepWords = (step) => (step >= 10000 ? `${(step / 1000).toFixed(1)}k` : grouped(step))
