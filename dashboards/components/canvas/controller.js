// Each measure of the balancing bias as one axis: a tick a layer, the median as a bar, the chosen layer as a dot.

import { css, line, text } from "./paint.js"

const ROW = 28
const LEFT = 128
const RIGHT = 112
const FOOT = 22
const NAMES = {
  bias_spread: ["spread of b", "largest − smallest"],
  drift: ["change of b", "mean size, 64 steps"],
  same_direction: ["same direction", "share of changes"],
  sign_flips: ["sign flips", "share of changes"],
  ki: ["I on Σe", "what the bias chases"],
  kp: ["P on e", "how hard it reacts"],
  kd: ["D on Δe", "damping"],
  sign_gain: ["u on sign e", "step of a sign controller"],
}

const SHARES = new Set(["same_direction", "sign_flips"])

export const controller = {
  draw(view) {
    const rows = rowsOf(view)
    const context = view.begin(Math.max(1, rows.length) * ROW + FOOT)
    const { tokens } = view
    rows.forEach((row, index) => drawRow(context, view, row, index * ROW + 4))
    const y = Math.max(1, rows.length) * ROW + 10
    line(context, LEFT, y - 4, LEFT, y + 4, tokens.off)
    text(context, "other layers", LEFT + 8, y, tokens.faint, { size: 10.5 })
    line(context, LEFT + 84, y - 5, LEFT + 84, y + 5, tokens.text, { width: 2 })
    text(context, "median", LEFT + 92, y, tokens.faint, { size: 10.5 })
    dot(context, LEFT + 146, y, tokens.ok)
    text(context, "this layer", LEFT + 155, y, tokens.faint, { size: 10.5 })
  },

  label(view) {
    return rowsOf(view).map(({ name, here, middle }) => `${NAMES[name][0]} ${figure(here)}, median ${figure(middle)}`).join("; ")
  },
}

// Every row comes from one answer of the server, the same as the sentence above it.
function rowsOf({ data }) {
  return Object.keys(NAMES)
    .filter((name) => data.facts?.[name])
    .map((name) => {
      const values = data.facts[name].map((value) => value ?? NaN)
      return { name, values, whole: SHARES.has(name), here: values[data.layer], middle: median(values) }
    })
}

function median(values) {
  const known = values.filter(Number.isFinite).sort((one, other) => one - other)
  const half = known.length / 2
  return known.length ? (known[Math.ceil(half) - 1] + known[Math.floor(half)]) / 2 : NaN
}

function drawRow(context, view, { name, values, whole, here, middle }, top) {
  const { tokens } = view
  const wide = view.width - LEFT - RIGHT
  const y = top + 9
  text(context, NAMES[name][0], 0, y - 1, tokens.text, { size: 12, weight: 500 })
  text(context, NAMES[name][1], 0, y + 12, tokens.faint, { size: 10.5 })
  line(context, LEFT, y, LEFT + wide, y, tokens.rule)
  const known = values.filter(Number.isFinite)
  const most = whole ? 1 : Math.max(...known, 0) || 1
  const least = whole ? 0 : Math.min(...known, 0)
  const x = (value) => LEFT + Math.max(0, Math.min(1, (value - least) / (most - least))) * (wide - 4) + 2
  if (least < 0) line(context, x(0), y - 8, x(0), y + 8, tokens["strong-rule"])
  for (const value of values) if (Number.isFinite(value)) line(context, x(value), y - 4, x(value), y + 4, tokens.off)
  if (Number.isFinite(middle)) line(context, x(middle), y - 6, x(middle), y + 6, tokens.text, { width: 2 })
  const far = Number.isFinite(here) && Number.isFinite(middle) && !whole && middle > 0 && (here > 3 * middle || here < 0)
  if (Number.isFinite(here)) dot(context, x(here), y, far ? tokens.warn : tokens.ok)
  const ink = far ? tokens["warn-text"] : tokens.text
  text(context, figure(here, whole), view.width - RIGHT + 14, y - 1, ink, { size: 12, weight: 600 })
  text(context, `median ${figure(middle, whole)}`, view.width - RIGHT + 14, y + 12, tokens.faint, { size: 10.5 })
}

function dot(context, x, y, color) {
  context.beginPath()
  context.arc(x, y, 4, 0, 7)
  context.fillStyle = css(color)
  context.fill()
}

function figure(value, whole) {
  if (!Number.isFinite(value)) return "–"
  if (whole) return `${Math.round(value * 100)} %`
  if (value === 0) return "0"
  const size = Math.abs(value)
  const told = size >= 0.001 ? size.toPrecision(3) : size.toExponential(1).replace("-", "−")
  return value < 0 ? `−${told}` : told
}
