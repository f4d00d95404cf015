// All layers over time: a row a layer, its distance from the sampling floor, and below it the share of skipped tokens.

import { gridOf, kept, scales } from "./grid.js"
import { moment } from "./moment.js"
import { box, css, grouped, line, loadColor, sequenceColor, text, two, veil } from "./paint.js"
import { drawStretches } from "./raster.js"
import { thresholdsOf } from "./rules.js"
import { axisOf, columnOf, drawMarks, drawTicks, hatchGaps, placeNow, timed } from "./time_axis.js"

const LEFT = 30
const RIGHT = 56
const TOP = 42
const TITLE = 40
const TICKS = 36
// CV over its floor on the colours of the load: grey up to 1x, the alarm's 4x is as strong as twice a fair load.
const shade = (value) => Math.log2(value < 1 ? 1 : value) / 2

export const history = {
  ...timed,

  draw(view) {
    if (!view.frame) return drawWaiting(view)
    const plan = planOf(view)
    const context = view.begin(plan.height)
    view.plan = plan
    if (!plan.axis.count) return
    const { cv_floor: cv, skip_share: skip } = view.frame.arrays
    const { tokens, frame } = view
    const at = (values) => (layer, column) => values[layer * plan.axis.count + column]
    const cells = kept(view, "cv", [frame, tokens], () =>
      gridOf(plan.layers, plan.axis.count, (layer, column) => shade(at(cv.values)(layer, column)), scales(view).load))
    drawPart(context, view, plan, cells, TOP)
    const { cv_floor: far } = thresholdsOf(frame, "expert-imbalance")
    drawNames(context, view, plan, TOP, cv.values, (value) => `${value.toFixed(1)}×`, (value) => value >= far)
    drawScale(context, view, "CV ÷ sampling floor of every layer", 8, (share) => loadColor(tokens, shade(2 ** (share * 4))), ["1×", "2×", "4×", "8×", "16×"])
    drawSkips(context, view, plan, skip.values, at)
    drawMarks(context, view, plan, TOP - 8)
    drawTicks(context, view, plan)
    if (view.stale) veil(context, tokens, LEFT, TOP, plan.wide, plan.row * plan.layers, view.staleWords())
  },

  at(view, x, y) {
    const { plan } = view
    if (!plan?.axis?.count || x >= LEFT + plan.wide) return null
    const first = Math.floor((y - TOP) / plan.row)
    const second = Math.floor((y - plan.skipTop) / plan.row)
    const inside = (row) => row >= 0 && row < plan.layers
    const layer = inside(first) ? first : plan.most > 0 && inside(second) ? second : null
    if (x < LEFT) return layer === null ? null : { column: endOf(view), layer, name: true }
    return { column: plan.axis.columnAt(x - LEFT), layer }
  },

  move(view, place, direction) {
    const from = place ?? { column: endOf(view), layer: view.data.layer ?? 0 }
    if (!place) return from
    const [down, right] = { Up: [-1, 0], Down: [1, 0], Left: [0, -1], Right: [0, 1] }[direction] ?? [0, 0]
    const clamp = (value, top) => Math.max(0, Math.min(top - 1, value))
    return { column: clamp(from.column + right, view.plan.axis.count), layer: clamp((from.layer ?? 0) + down, view.plan.layers) }
  },

  pick(view, place) {
    const chosen = place.layer === null || place.layer === view.data.layer ? {} : { layer: place.layer, expert: null }
    if (place.name) view.component.setTriggerValue("pick", chosen)
    else view.show(view.frame.arrays.steps.values[place.column], chosen)
  },

  words(view, given) {
    const place = view.plan && placeNow(view, given)
    if (!place || place.column >= view.plan.axis.count) return [{ text: "Point at a moment; click or Enter shows it everywhere." }]
    const { steps, cv_floor: cv, skip_share: skip, worst } = view.frame.arrays
    const step = `step ${grouped(steps.values[place.column])}`
    const layer = place.layer ?? view.data.layer ?? null
    if (layer === null) return [{ text: step, strong: true }, { text: `worst layer ${worst.values[place.column].toFixed(1)}× floor` }]
    const index = layer * view.plan.axis.count + place.column
    const known = Number.isFinite(cv.values[index])
    const skipped = skip.values[index] > 0 ? `  ·  ${(skip.values[index] * 100).toFixed(2)} % skipped` : ""
    const said = known ? `CV ${cv.values[index].toFixed(2)}× floor${skipped}` : "no data"
    return [{ text: `${step} · layer ${two(layer, view.plan.layers)}`, strong: true }, { text: said }]
  },

  label(view) {
    if (!view.plan?.axis?.count) return "All layers over time: no samples in this window."
    const { worst } = view.frame.arrays
    const end = worst.values[endOf(view)]
    return `${view.plan.layers} layers over ${view.plan.axis.count} samples: the worst is ${end.toFixed(1)} times its floor at the end.`
  },
}

const endOf = (view) => columnOf(view.frame.arrays.steps.values, moment.step) ?? view.frame.arrays.steps.values.length - 1

function planOf(view) {
  const [layers, count] = view.frame.arrays.cv_floor.shape
  const most = view.frame.arrays.skip_share.values.reduce((found, value) => (value > found ? value : found), 0)
  const row = Math.max(4, Math.min(22, (most > 0 ? 210 : 400) / layers))
  const wide = Math.max(60, view.width - LEFT - RIGHT)
  const skipTop = TOP + row * layers + TITLE
  const bottom = most > 0 ? skipTop + row * layers : TOP + row * layers
  return { layers, most, row, wide, left: LEFT, top: TOP, skipTop, bottom, titleWide: 0, height: bottom + TICKS, axis: axisOf(view.frame, wide, count) }
}

function drawPart(context, view, plan, cells, top) {
  const high = plan.row * plan.layers
  drawStretches(context, plan, cells, top, high)
  if (plan.row >= 5) {
    context.fillStyle = css(view.tokens.bg)
    for (let layer = 1; layer <= plan.layers; layer++) context.fillRect(LEFT, top + layer * plan.row - 1, plan.wide, 1)
  }
  hatchGaps(context, view, plan, top, high)
  const { layer } = view.data
  if (layer !== null && layer < plan.layers) box(context, LEFT - 2, top + layer * plan.row - 2, plan.wide + 4, plan.row + 3, view.tokens.link)
}

// Layers that stand out are named with their value; of the others as many as there is room for.
// The value of the last column that is shown, at the right; a column is not what the alarms judge, so none is called wrong.
function drawNames(context, view, plan, top, values, words, isLoud) {
  const { tokens } = view
  const end = endOf(view)
  const of = (layer) => values[layer * plan.axis.count + end]
  const order = Array.from({ length: plan.layers }, (_, layer) => layer)
  const loud = order.filter((layer) => layer === view.data.layer || isLoud(of(layer)))
  loud.sort((one, other) => (other === view.data.layer) - (one === view.data.layer) || of(other) - of(one))
  const taken = []
  for (const layer of [...loud, ...order.filter((layer) => !loud.includes(layer))]) {
    const y = top + (layer + 0.5) * plan.row
    if (taken.some((other) => Math.abs(other - y) < 10.5)) continue
    taken.push(y)
    const strong = Number.isFinite(of(layer)) && isLoud(of(layer))
    const chosen = layer === view.data.layer
    const ink = chosen ? tokens.link : strong ? tokens.text : tokens.faint
    const style = { size: 10.5, align: "right", weight: chosen || strong ? 600 : 400 }
    text(context, two(layer, plan.layers), LEFT - 5, y, ink, style)
    text(context, Number.isFinite(of(layer)) ? words(of(layer)) : "no data", view.width, y, ink, style)
  }
}

function drawSkips(context, view, plan, values, at) {
  if (!(plan.most > 0)) return
  const { tokens, frame } = view
  const cells = kept(view, "skips", [frame, tokens], () =>
    gridOf(plan.layers, plan.axis.count, (layer, column) => at(values)(layer, column) / plan.most, scales(view).sequence))
  drawPart(context, view, plan, cells, plan.skipTop)
  drawNames(context, view, plan, plan.skipTop, values, (value) => (value > 0 ? `${(value * 100).toFixed(1)} %` : "–"), (value) => value > plan.most / 2)
  const marks = [0, 0.25, 0.5, 0.75, 1].map((share) => (share % 0.5 ? "" : `${(plan.most * share * 100).toFixed(plan.most < 0.02 ? 2 : plan.most < 0.1 ? 1 : 0)} %`))
  drawScale(context, view, "skip share of every layer", plan.skipTop - 30, (share) => sequenceColor(tokens, share), marks)
}

function drawScale(context, view, title, top, color, marks) {
  const { tokens } = view
  text(context, title, LEFT, top, tokens.text, { size: 11.5, weight: 500 })
  const left = view.width - RIGHT - 170
  for (let x = 0; x < 160; x++) {
    context.fillStyle = css(color(x / 159))
    context.fillRect(left + x, top - 5, 1, 7)
  }
  marks.forEach((mark, index) => text(context, mark, left + 40 * index, top + 10, tokens.muted, { align: "center", size: 10 }))
}

function drawWaiting(view) {
  const context = view.begin(TOP + 400 + TICKS)
  context.fillStyle = css(view.tokens.panel)
  context.fillRect(LEFT, TOP, Math.max(20, view.width - LEFT - RIGHT), 400)
  const words = view.state.missed ? "no samples yet" : "waiting for the samples"
  text(context, words, view.width / 2, TOP + 200, view.tokens.muted, { align: "center", size: 12.5 })
  line(context, LEFT, TOP + 400, view.width - RIGHT, TOP + 400, view.tokens["strong-rule"])
}
