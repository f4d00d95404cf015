// Two runs on one axis of steps: CV over its floor, of the worst layer and of the median one.

import { moment } from "./moment.js"
import { css, grouped, line, text, widthOf } from "./paint.js"
import { floorLines } from "./rules.js"
import { columnOf } from "./time_axis.js"

const LEFT = 34
const RIGHT = 54
const TOP = 30
const HIGH = 210
const FOOT = 20

export const curves = {
  timed: true,

  draw(view) {
    const context = view.begin(HIGH)
    view.plan = planOf(view)
    if (!view.plan) return drawWaiting(context, view)
    drawAxes(context, view, view.plan)
    for (const one of view.plan.runs) drawRun(context, view.plan, one)
    nameEnds(context, view.plan)
  },

  over(view, context) {
    const { plan, tokens } = view
    if (!plan) return
    for (const [step, color, width] of [[moment.step, tokens.link, 1.5], [moment.hovered, tokens.muted, 1]]) {
      if (step === null || step < plan.from || step > plan.to) continue
      line(context, plan.x(step), TOP, plan.x(step), HIGH - FOOT, color, { width })
    }
  },

  at(view, x) {
    const { plan } = view
    if (!plan || x < LEFT || x > LEFT + plan.wide) return null
    return { step: Math.round(plan.from + ((plan.to - plan.from) * (x - LEFT)) / plan.wide) }
  },

  move(view, place, direction) {
    const steps = stepsOf(view.plan)
    const from = columnOf(steps, place?.step ?? moment.step) ?? steps.length - 1
    return { step: steps[Math.max(0, Math.min(steps.length - 1, from + ({ Left: -1, Right: 1 }[direction] ?? 0)))] }
  },

  pick: (view, place) => view.show(place.step),

  words(view, given) {
    if (!view.plan) return []
    const step = given?.step ?? moment.hovered ?? moment.step
    if (step === null) return [{ text: "Point at a moment; click or Enter shows it everywhere." }]
    const parts = view.plan.runs.map(({ name, frame }) => {
      const column = columnOf(frame.arrays.steps.values, step)
      const at = ({ values }) => (column === null || !Number.isFinite(values[column]) ? "–" : `${values[column].toFixed(2)}×`)
      return `${name}: worst ${at(frame.arrays.worst)}, median ${at(frame.arrays.middle)}`
    })
    return [{ text: `step ${grouped(step)}`, strong: true }, { text: parts.join("  ·  ") }]
  },

  label(view) {
    if (!view.plan) return "CV over its floor of two runs: no steps yet."
    const ends = view.plan.runs.map(({ name, frame }) => `${name} ends at ${frame.arrays.worst.values.at(-1).toFixed(1)} times its floor`)
    return `CV over its floor of the worst layer: ${ends.join("; ")}.`
  },
}

// The steps that either run has a column for, in order. A place on this axis is a step: runs have columns of their own.
const stepsOf = ({ runs }) => [...new Set(runs.flatMap(({ frame }) => [...frame.arrays.steps.values]))].sort((one, other) => one - other)

function planOf(view) {
  const { tokens, data } = view
  const runs = [[view.frame, data.names?.[0], tokens.ok], [view.other, data.names?.[1], tokens["scale-p1"]]]
    .filter(([frame]) => frame?.arrays.steps.values.length)
    .map(([frame, name, color]) => ({ frame, name: name ?? "run", color }))
  if (!view.frame || !runs.length) return null
  let [from, to, most] = [Infinity, -Infinity, 6]
  for (const { frame } of runs) {
    const { steps, worst } = frame.arrays
    from = Math.min(from, frame.header.first_step ?? steps.values[0])
    to = Math.max(to, steps.values.at(-1))
    for (const value of worst.values) if (value > most) most = value
  }
  const wide = Math.max(60, view.width - LEFT - RIGHT)
  const [low, top] = [Math.log2(0.7), Math.log2(most * 1.1)]
  const high = HIGH - TOP - FOOT
  return {
    runs, from, to, wide,
    x: (step) => LEFT + (wide * (step - from)) / Math.max(1, to - from),
    y: (value) => TOP + high * (1 - (Math.log2(Math.max(value, 0.7)) - low) / (top - low)),
  }
}

function drawAxes(context, view, plan) {
  const { tokens } = view
  const bottom = HIGH - FOOT
  line(context, LEFT, bottom, LEFT + plan.wide, bottom, tokens["strong-rule"])
  line(context, LEFT, plan.y(1), LEFT + plan.wide, plan.y(1), tokens.rule)
  text(context, "1×", LEFT - 5, plan.y(1), tokens.faint, { align: "right", size: 10.5 })
  for (const [mark, color, ink] of floorLines(view.frame, tokens)) {
    line(context, LEFT, plan.y(mark), LEFT + plan.wide, plan.y(mark), color, { dash: [1.5, 3] })
    text(context, `${mark}×`, LEFT - 5, plan.y(mark), ink, { align: "right", size: 10.5 })
  }
  const ticks = Math.max(2, Math.min(5, Math.floor(plan.wide / 110)))
  for (let tick = 0; tick <= ticks; tick++) {
    const step = plan.from + ((plan.to - plan.from) * tick) / ticks
    const align = tick === 0 ? "left" : tick === ticks ? "right" : "center"
    text(context, `${tick ? "" : "step "}${grouped(step)}`, plan.x(step), bottom + 11, tokens.faint, { align, size: 10.5 })
  }
  let x = LEFT
  for (const { name, color } of plan.runs) {
    line(context, x, 10, x + 18, 10, color, { width: 2 })
    text(context, name, x + 24, 10, tokens.text, { size: 11.5, weight: 500 })
    x += 24 + widthOf(context, name, 11.5, 500) + 18
  }
  text(context, "strong: worst layer, thin: median layer", x, 10, tokens.faint, { size: 10.5 })
}

function drawRun(context, plan, { frame, color }) {
  const { steps, worst, middle } = frame.arrays
  for (const [{ values }, width] of [[middle, 1], [worst, 1.8]]) {
    context.beginPath()
    let drawn = false
    for (let column = 0; column < values.length; column++) {
      const at = plan.y(values[column])
      if (!Number.isFinite(at)) {
        drawn = false
        continue
      }
      drawn ? context.lineTo(plan.x(steps.values[column]), at) : context.moveTo(plan.x(steps.values[column]), at)
      drawn = true
    }
    context.lineWidth = width
    context.strokeStyle = css(color, width > 1 ? 1 : 0.6)
    context.stroke()
  }
}

// Where each run's worst layer ended, at the right; two that ended alike stand below each other.
function nameEnds(context, plan) {
  const ends = plan.runs.map(({ frame, color }) => ({ value: frame.arrays.worst.values.at(-1), color }))
  let below = -Infinity
  for (const { value, color } of ends.filter(({ value }) => Number.isFinite(value)).sort((one, other) => other.value - one.value)) {
    below = Math.max(plan.y(value), below + 13)
    text(context, `${value.toFixed(1)}×`, LEFT + plan.wide + 6, below, color, { size: 11.5, weight: 600 })
  }
}

function drawWaiting(context, view) {
  context.fillStyle = css(view.tokens.panel)
  context.fillRect(LEFT, TOP, Math.max(20, view.width - LEFT - RIGHT), HIGH - TOP - FOOT)
  text(context, "waiting for the steps of both runs", view.width / 2, HIGH / 2, view.tokens.muted, { align: "center", size: 12.5 })
}
