// The phase plot of a layer or of one expert: how wrong the load is against what the bias does about it, over time.
//
// A controller at rest is a knot, one that overshoots goes round in loops, a runaway is a line that leaves. Colour is
// time, from pale to full. For a chosen expert the load error e·E = share x E - 1 (e as in docs/experts.md) against its bias; for a layer the mean
// |e| against the spread of the biases.

import { kept } from "./grid.js"
import { moment } from "./moment.js"
import { css, grouped, line, sequenceColor, signed, text, veil } from "./paint.js"
import { columnOf, placeNow, timed } from "./time_axis.js"

const HIGH = 236
const LEFT = 58
const RIGHT = 16
const TOP = 26
const FOOT = 34

export const phase = {
  timed: true,

  draw(view) {
    const context = view.begin(HIGH)
    if (!view.frame || !view.frame.arrays.steps.values.length) return drawWaiting(context, view)
    const plan = planOf(view)
    view.plan = plan
    drawAxes(context, view, plan)
    drawPath(context, view, plan)
    if (view.stale) veil(context, view.tokens, LEFT, TOP, plan.wide, plan.high, view.staleWords())
  },

  over(view, context) {
    const { plan, tokens } = view
    if (!plan) return
    for (const [step, color, size] of [[moment.step, tokens.link, 5], [moment.hovered, tokens.text, 4]]) {
      const column = columnOf(view.frame.arrays.steps.values, step)
      if (column === null || !Number.isFinite(plan.xs[column])) continue
      dot(context, plan.x(plan.xs[column]), plan.y(plan.ys[column]), size, color)
    }
  },

  // The sample nearest to the pointer.
  at(view, x, y) {
    const { plan } = view
    if (!plan) return null
    let best = null
    let least = 18 ** 2
    for (let column = 0; column < plan.xs.length; column++) {
      const far = (plan.x(plan.xs[column]) - x) ** 2 + (plan.y(plan.ys[column]) - y) ** 2
      if (far < least) [best, least] = [column, far]
    }
    return best === null ? null : { column: best }
  },

  move(view, place, direction) {
    const count = view.frame.arrays.steps.values.length
    const from = place?.column ?? columnOf(view.frame.arrays.steps.values, moment.step) ?? count - 1
    return { column: Math.max(0, Math.min(count - 1, from + ({ Left: -1, Right: 1 }[direction] ?? 0))) }
  },

  pick: timed.pick,

  words(view, given) {
    const place = view.plan && placeNow(view, given)
    if (!place || !(place.column < view.plan.xs.length)) return [{ text: "A knot is calm, a loop overshoots, a line runs away." }]
    const { xs, ys, names } = view.plan
    const said = `${names[2]} ${signed(xs[place.column], 3)}  ·  ${names[3]} ${signed(ys[place.column], 4)}`
    return [{ text: `step ${grouped(view.frame.arrays.steps.values[place.column])}`, strong: true }, { text: said }]
  },

  label(view) {
    if (!view.plan) return "Phase plot: no samples yet."
    const { xs, ys, names } = view.plan
    return `Phase plot of ${names[0]} against ${names[1]}: from ${signed(xs[0], 3)}, ${signed(ys[0], 4)} to ${signed(xs.at(-1), 3)}, ${signed(ys.at(-1), 4)}.`
  },
}

// The path's points: of one expert, or of the layer.
function pathOf(view) {
  const { frame, data } = view
  const [experts, count] = frame.arrays.share.shape
  const one = data.expert !== null && data.expert !== undefined && data.expert < experts ? data.expert : null
  return kept(view, "path", [frame, one], () => {
    const [share, bias] = [frame.arrays.share.values, frame.arrays.bias.values]
    const xs = new Float64Array(count)
    const ys = new Float64Array(count)
    for (let column = 0; column < count; column++) {
      if (one !== null) {
        xs[column] = share[one * count + column] * experts - 1
        ys[column] = bias[one * count + column]
        continue
      }
      let [sum, low, high] = [0, Infinity, -Infinity]
      for (let expert = 0; expert < experts; expert++) {
        sum += Math.abs(share[expert * count + column] * experts - 1)
        const value = bias[expert * count + column]
        if (value < low) low = value
        if (value > high) high = value
      }
      xs[column] = sum / experts
      ys[column] = high - low
    }
    const names = one === null ? ["mean load error |e|·E", "spread of the biases", "mean |e|·E", "spread"] : [`load error e·E of expert ${one}`, `its bias b`, "e·E", "b"]
    return { xs, ys, names }
  })
}

function rangeOf(values, whole) {
  let [low, high] = whole ? [0, 0] : [Infinity, -Infinity]
  for (const value of values) {
    if (!Number.isFinite(value)) continue
    if (value < low) low = value
    if (value > high) high = value
  }
  if (!(high > low)) return [low - 1e-6 || -1e-6, high + 1e-6 || 1e-6]
  const pad = (high - low) * 0.06
  return [whole && low === 0 ? 0 : low - pad, high + pad]
}

function planOf(view) {
  const { xs, ys, names } = pathOf(view)
  const wide = Math.max(60, view.width - LEFT - RIGHT)
  const high = HIGH - TOP - FOOT
  const [left, right] = rangeOf(xs, true)
  const [bottom, top] = rangeOf(ys, false)
  return {
    xs, ys, names, wide, high, range: { left, right, bottom, top },
    x: (value) => LEFT + (wide * (value - left)) / (right - left),
    y: (value) => TOP + (high * (top - value)) / (top - bottom),
  }
}

function drawAxes(context, view, plan) {
  const { tokens } = view
  const { range, names } = plan
  const low = TOP + plan.high
  line(context, LEFT, low, LEFT + plan.wide, low, tokens["strong-rule"])
  line(context, LEFT, TOP, LEFT, low, tokens["strong-rule"])
  if (range.left < 0 && range.right > 0) line(context, plan.x(0), TOP, plan.x(0), low, tokens.rule)
  if (range.bottom < 0 && range.top > 0) line(context, LEFT, plan.y(0), LEFT + plan.wide, plan.y(0), tokens.rule)
  const digits = (span) => (span >= 2 ? 1 : span >= 0.2 ? 2 : span >= 0.02 ? 3 : span >= 0.002 ? 4 : 5)
  const [across, up] = [digits(range.right - range.left), digits(range.top - range.bottom)]
  for (const part of [0, 0.25, 0.5, 0.75, 1]) {
    const value = range.left + (range.right - range.left) * part
    const align = part === 0 ? "left" : part === 1 ? "right" : "center"
    text(context, signed(value, across).replace("+", ""), plan.x(value), low + 11, tokens.faint, { align, size: 10.5 })
    const height = range.bottom + (range.top - range.bottom) * part
    text(context, signed(height, up).replace("+", ""), LEFT - 6, plan.y(height), tokens.faint, { align: "right", size: 10.5 })
  }
  text(context, `${names[1]} ↑`, LEFT, 9, tokens.text, { size: 11.5, weight: 500 })
  text(context, `${names[0]} →`, LEFT + plan.wide, low + 25, tokens.text, { size: 11.5, weight: 500, align: "right" })
  const { values } = view.frame.arrays.steps
  const [from, to] = [grouped(values[0]), grouped(values.at(-1))]
  const swatch = LEFT + plan.wide - 190
  text(context, `step ${from}`, swatch - 6, 9, tokens.faint, { size: 10.5, align: "right" })
  for (let x = 0; x < 60; x++) {
    context.fillStyle = css(sequenceColor(tokens, 0.15 + (0.85 * x) / 59))
    context.fillRect(swatch + x, 6, 1, 6)
  }
  text(context, to, swatch + 66, 9, tokens.faint, { size: 10.5 })
}

function drawPath(context, view, plan) {
  const { tokens } = view
  const count = plan.xs.length
  context.lineWidth = 1.4
  context.lineJoin = "round"
  for (let column = 1; column < count; column++) {
    if (!Number.isFinite(plan.xs[column] + plan.ys[column] + plan.xs[column - 1] + plan.ys[column - 1])) continue
    context.beginPath()
    context.moveTo(plan.x(plan.xs[column - 1]), plan.y(plan.ys[column - 1]))
    context.lineTo(plan.x(plan.xs[column]), plan.y(plan.ys[column]))
    context.strokeStyle = css(sequenceColor(tokens, 0.15 + (0.85 * column) / (count - 1)))
    context.stroke()
  }
  dot(context, plan.x(plan.xs[count - 1]), plan.y(plan.ys[count - 1]), 4, tokens.text)
}

function dot(context, x, y, size, color) {
  context.beginPath()
  context.arc(x, y, size, 0, 7)
  context.fillStyle = css(color)
  context.fill()
}

function drawWaiting(context, view) {
  context.fillStyle = css(view.tokens.panel)
  context.fillRect(LEFT, TOP, Math.max(20, view.width - LEFT - RIGHT), HIGH - TOP - FOOT)
  const words = view.state.missed ? "no samples of this layer yet" : "waiting for the samples"
  text(context, words, view.width / 2, HIGH / 2, view.tokens.muted, { align: "center", size: 12.5 })
}
