// The time axis that all parts of a picture share: where a column stands, where nothing was measured, what happened,
// and the page's one time cursor on it.

import { moment } from "./moment.js"
import { css, grouped, hatch, line, text, widthOf } from "./paint.js"

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

// A restart is a full line with its name, a change of data a dotted one; both run through all parts. `names` is where
// the words stand, or null for lines alone.
export function drawMarks(context, view, plan, names = 8) {
  const { tokens, frame } = view
  let free = plan.left + (plan.titleWide ?? 128)
  for (const mark of [...(frame.header.marks ?? [])].sort((one, other) => one.column - other.column)) {
    if (!(mark.column >= 0 && mark.column < plan.axis.count)) continue
    const fault = mark.kind === "restart"
    const [start] = plan.axis.span(mark.column)
    const x = plan.left + start - (fault && plan.axis.breaksBefore(mark.column) ? plan.axis.gaps[0][1] - plan.axis.gaps[0][0] : 0)
    line(context, x, plan.top - 4, x, plan.bottom, fault ? tokens.fault : tokens.text, fault ? { width: 1.5 } : { dash: [1.5, 3] })
    if (names === null) continue
    const words = `${fault ? "× " : ""}${mark.label ?? mark.kind}`
    const wide = widthOf(context, words, 10.5)
    const beside = x + wide > plan.left + plan.wide ? x - wide / 2 : x
    const from = Math.max(free, Math.min(beside, plan.left + plan.wide - wide))
    if (from + wide > plan.left + plan.wide + 20) continue
    free = from + wide + 10
    text(context, words, from, names, fault ? tokens["fault-text"] : tokens.muted, { size: 10.5 })
  }
}

// The wall clock above, the step below it.
export function drawTicks(context, view, plan) {
  const { tokens } = view
  const { axis } = plan
  if (!axis.count) return
  const ticks = Math.max(2, Math.min(7, Math.floor(plan.wide / 90)))
  const shown = columnOf(axis.steps, moment.step)
  const [cursor] = shown === null ? [-Infinity] : axis.span(shown)
  let [before, beforeStep] = ["", ""]
  for (let tick = 0; tick < ticks; tick++) {
    const column = Math.round(((tick + 0.5) / ticks) * (axis.count - 1))
    const [start, wide] = axis.span(column)
    const x = plan.left + start + wide / 2
    line(context, x, plan.bottom, x, plan.bottom + 4, tokens["strong-rule"])
    if (Math.abs(start - cursor) < 56) continue
    const words = axis.at ? clock(axis.at[column], axis.at) : ""
    const step = axis.steps ? stepWords(axis.steps[column]) : ""
    if (words !== before) text(context, words, x, plan.bottom + 12, tokens.muted, { align: "center", size: 10.5 })
    if (step !== beforeStep) text(context, step, x, plan.bottom + 25, tokens.faint, { align: "center", size: 10.5 })
    ;[before, beforeStep] = [words, step]
  }
}

function clock(at, all) {
  const told = new Date(at * 1000).toISOString()
  return all[all.length - 1] - all[0] < 1800 ? told.slice(11, 19) : told.slice(11, 16)
}

const stepWords = (step) => (step >= 10000 ? `${(step / 1000).toFixed(1)}k` : grouped(step))

// The column that a step lies in: a column ends with its step. Null where the axis does not reach.
export function columnOf(steps, step) {
  if (step === null || step === undefined || !steps?.length) return null
  const last = steps.length - 1
  if (step > steps[last] || step < steps[0] - Math.max(1, (steps[1] ?? steps[0] + 1) - steps[0]) + 1) return null
  let [low, high] = [0, last]
  while (low < high) {
    const middle = (low + high) >> 1
    steps[middle] >= step ? (high = middle) : (low = middle + 1)
  }
  return low
}

// The step that is shown as a full line with its number, the one that is pointed at as a thin one.
export function drawCursor(context, view, plan) {
  const { tokens } = view
  const place = (step) => {
    const column = columnOf(plan.axis.steps, step)
    if (column === null) return null
    const [start, wide] = plan.axis.span(column)
    return plan.left + start + wide / 2
  }
  const shown = place(moment.step)
  if (shown !== null) {
    line(context, shown, plan.top - 4, shown, plan.bottom, tokens.link, { width: 1.5 })
    const words = grouped(moment.step)
    const wide = widthOf(context, words, 10.5, 600) + 8
    const left = Math.max(plan.left, Math.min(shown - wide / 2, plan.left + plan.wide - wide))
    context.fillStyle = css(tokens.link)
    context.fillRect(left, plan.bottom, wide, 14)
    text(context, words, left + wide / 2, plan.bottom + 7.5, tokens.bg, { size: 10.5, weight: 600, align: "center" })
  }
  const pointed = place(moment.hovered)
  if (pointed !== null) line(context, pointed, plan.top, pointed, plan.bottom, tokens.muted)
}

// A line through the samples, broken at every gap and at every value that is not known.
export function strokeSeries(context, plan, y, color, width) {
  context.beginPath()
  let drawn = false
  for (let column = 0; column < plan.axis.count; column++) {
    const at = y(column)
    if (plan.axis.breaksBefore(column)) drawn = false
    if (!Number.isFinite(at)) {
      drawn = false
      continue
    }
    const [x, wide] = plan.axis.span(column)
    drawn ? context.lineTo(plan.left + x + wide / 2, at) : context.moveTo(plan.left + x + wide / 2, at)
    drawn = true
  }
  context.lineWidth = width
  context.strokeStyle = css(color)
  context.stroke()
}

export function hatchGaps(context, view, plan, top, high) {
  for (const [from, to] of plan.axis.gaps) hatch(context, plan.left + from, top, to - from, high, view.tokens.hatch)
}

// What every picture with a time axis does with the pointer and the keys: columns only. A kind adds what is its own.
export const timed = {
  timed: true,

  over: (view, context) => view.plan && drawCursor(context, view, view.plan),

  at(view, x, y) {
    const { plan } = view
    if (!plan?.axis?.count || x < plan.left || x >= plan.left + plan.wide || y < 0 || y > plan.bottom + 8) return null
    return { column: plan.axis.columnAt(x - plan.left) }
  },

  move(view, place, direction) {
    const { axis } = view.plan
    const from = place ?? { column: columnOf(axis.steps, moment.step) ?? axis.count - 1 }
    const step = { Left: -1, Right: 1 }[direction] ?? 0
    return { ...from, column: Math.max(0, Math.min(axis.count - 1, from.column + step)) }
  },

  pick: (view, place) => view.show(view.frame.arrays.steps.values[place.column]),
}

// Where this view's readout speaks of: what is pointed at here, else the page's moment.
export function placeNow(view, place) {
  if (place) return place
  const column = columnOf(view.frame.arrays.steps.values, moment.hovered ?? moment.step)
  return column === null ? null : { column, expert: null }
}
