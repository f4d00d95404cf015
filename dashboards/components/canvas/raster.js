// One layer over time: expert load, CV over its floor and the balancing bias on one axis, with the gaps as gaps.
//
// A column is one sample. Where two samples stand further apart than usual nothing was measured: that stays hatched and
// no line is drawn across it.

import { drawGrid, gridOf, kept, scales } from "./grid.js"
import { moment } from "./moment.js"
import { css, hatch, line, loadColor, signed, text, times, two, veil, widthOf } from "./paint.js"
import { floorLines } from "./rules.js"
import { axisOf, columnOf, drawMarks, drawTicks, hatchGaps, placeNow, strokeSeries, timed } from "./time_axis.js"

const LEFT = 30
const RIGHT = 74
const TOP = 22
const CV_HIGH = 58
const BIAS_HIGH = 104
const SKIP_HIGH = 22
const TITLE = 24
const TICKS = 36
const LABELLED = 4
const LABEL_HIGH = 9.4

export const raster = {
  ...timed,

  draw(view) {
    if (!view.frame) return drawWaiting(view)
    const plan = planOf(view)
    const context = view.begin(plan.height)
    view.plan = plan
    drawLoad(context, view, plan)
    drawCv(context, view, plan)
    drawBias(context, view, plan)
    drawSkip(context, view, plan)
    drawMarks(context, view, plan)
    drawTicks(context, view, plan)
    drawTitles(context, view, plan)
    if (view.stale) veil(context, view.tokens, LEFT, TOP, plan.wide, plan.loadHigh, view.staleWords())
  },

  // On the numbers at the left an expert alone is chosen, in the picture its moment too.
  at(view, x, y) {
    const { plan } = view
    if (!plan || x >= LEFT + plan.wide || !plan.axis.count) return null
    const row = Math.floor((y - TOP) / plan.row)
    const expert = row >= 0 && row < plan.experts ? row : null
    if (x < LEFT) return expert === null ? null : { column: shownColumn(view), expert, name: true }
    return { column: plan.axis.columnAt(x - LEFT), expert }
  },

  move(view, place, direction) {
    const { plan } = view
    if (!place) return { column: shownColumn(view), expert: view.data.expert ?? 0 }
    const step = { Up: [0, -1], Down: [0, 1], Left: [-1, 0], Right: [1, 0] }[direction] ?? [0, 0]
    const clamp = (value, top) => Math.max(0, Math.min(top - 1, value))
    return { column: clamp(place.column + step[0], plan.axis.count), expert: clamp((place.expert ?? 0) + step[1], plan.experts) }
  },

  pick(view, place) {
    const chosen = place.expert === null ? {} : { layer: view.data.layer, expert: place.expert }
    if (place.name) view.component.setTriggerValue("pick", chosen)
    else view.show(view.frame.arrays.steps.values[place.column], chosen)
  },

  words(view, given) {
    const { plan, frame } = view
    const place = plan && placeNow(view, given)
    if (!place || place.column >= plan.axis.count) return [{ text: "Point at a moment; click or Enter shows it everywhere." }]
    const { steps, cv, bias, share } = frame.arrays
    const expert = place.expert ?? view.data.expert ?? null
    const parts = [`CV ${times(cv.values[place.column])} floor`]
    const name = expert === null ? "" : ` · expert ${expert}`
    if (expert !== null && expert < plan.experts) {
      const index = expert * plan.axis.count + place.column
      const load = share.values[index] * plan.experts
      parts.unshift(Number.isFinite(load) ? times(load) : "no tokens recorded")
      parts.push(`bias ${signed(bias.values[index], 4)}`)
    }
    return [{ text: `step ${Math.round(steps.values[place.column])}${name}`, strong: true }, { text: parts.join("  ·  ") }]
  },

  label(view) {
    if (!view.frame || !view.plan?.axis.count) return `Layer ${view.data.layer}: no samples in this window.`
    const last = shownColumn(view)
    const cv = view.frame.arrays.cv.values[last]
    if (!Number.isFinite(now(view, 0))) return `Layer ${view.data.layer} over time: no tokens recorded at its end.`
    const far = farthest(view).map((expert) => `${expert} at ${now(view, expert).toFixed(2)} times its share`)
    return `Layer ${view.data.layer} over time: CV is ${cv.toFixed(1)} times its floor at its end; farthest experts: ${far.join(", ")}.`
  },
}

// The column whose values stand at the right: of the step that is shown, else the newest.
const shownColumn = (view) => columnOf(view.frame.arrays.steps.values, moment.step) ?? view.frame.arrays.steps.values.length - 1

function planOf(view) {
  const [experts, count] = view.frame.arrays.share.shape
  const loadHigh = Math.max(120, Math.min(experts * 10, 224))
  const wide = Math.max(60, view.width - LEFT - RIGHT)
  const cvTop = TOP + loadHigh + TITLE
  const biasTop = cvTop + CV_HIGH + TITLE
  const skips = view.frame.arrays.skip_share?.values.some((value) => value > 0)
  const skipTop = biasTop + BIAS_HIGH + TITLE
  const bottom = skips ? skipTop + SKIP_HIGH : biasTop + BIAS_HIGH
  return {
    experts, left: LEFT, wide, top: TOP, row: loadHigh / experts, loadHigh, cvTop, cvHigh: CV_HIGH, biasTop, biasHigh: BIAS_HIGH,
    skips, skipTop, bottom, height: bottom + TICKS, axis: axisOf(view.frame, wide, count),
  }
}

const now = (view, expert) => {
  const { share } = view.frame.arrays
  const [experts, count] = share.shape
  return share.values[expert * count + shownColumn(view)] * experts
}

// The experts farthest from a fair share at that column, in the order of their numbers; a chosen one is among them.
export function farthest(view) {
  const [experts] = view.frame.arrays.share.shape
  const far = (expert) => Math.abs(Math.log2(Math.max(now(view, expert), 0.01)))
  return [...Array(experts).keys()]
    .sort((one, other) => far(other) - far(one))
    .slice(0, LABELLED)
    .filter((expert) => far(expert) > Math.log2(1.1) && expert !== view.data.expert)
    .concat(view.data.expert !== null && view.data.expert < experts ? [view.data.expert] : [])
    .sort((one, other) => one - other)
}

function drawLoad(context, view, plan) {
  const { tokens, frame } = view
  text(context, "expert load, × of 1/E", LEFT, 8, tokens.text, { size: 11.5, weight: 500 })
  const until = moment.step !== null && columnOf(frame.arrays.steps.values, moment.step) !== null
  text(context, until ? "at step" : "now", view.width - 30, 10, tokens.faint, { align: "right", size: 10.5 })
  const { values } = frame.arrays.share
  const { count } = plan.axis
  const cells = kept(view, "load", [frame, tokens], () =>
    gridOf(plan.experts, count, (expert, column) => {
      const value = values[expert * count + column] * plan.experts
      return value > 0 ? Math.log2(value) : value === 0 ? -2 : NaN
    }, scales(view).load),
  )
  if (count) drawStretches(context, plan, cells, TOP, plan.loadHigh)
  hatchUntold(context, view, plan)
  if (plan.row >= 4) {
    context.fillStyle = css(tokens.bg)
    for (let expert = 1; expert <= plan.experts; expert++) context.fillRect(LEFT, TOP + expert * plan.row - 1, plan.wide, 1)
  }
  nameExperts(context, view, plan, new Set(farthest(view)))
  hatchGaps(context, view, plan, TOP, plan.loadHigh)
}

// A picture of all columns in the stretches between the gaps of its axis.
export function drawStretches(context, plan, cells, top, high) {
  const { axis, left } = plan
  context.imageSmoothingEnabled = false
  let begin = 0
  for (let column = 1; column <= axis.count; column++) {
    if (column < axis.count && !axis.breaksBefore(column)) continue
    const [from] = axis.span(begin)
    const [last, wide] = axis.span(column - 1)
    context.drawImage(cells, begin, 0, column - begin, cells.height, left + from, top, last + wide - from, high)
    begin = column
  }
}

// Stretches of columns in which no token of the layer was recorded.
function hatchUntold(context, view, plan) {
  const { values } = view.frame.arrays.share
  const { count, span } = plan.axis
  for (let begin = 0, column = 0; column < count; begin = ++column) {
    while (column < count && !Number.isFinite(values[column])) column += 1
    if (column === begin) continue
    const [last, wide] = span(column - 1)
    hatch(context, LEFT + span(begin)[0], TOP, last + wide - span(begin)[0], plan.loadHigh, view.tokens.hatch)
  }
}

// The numbers at both ends: first the experts that stand out, then as many of the others as have room.
function nameExperts(context, view, plan, far) {
  const { tokens } = view
  const taken = []
  const rest = [...Array(plan.experts).keys()].filter((expert) => !far.has(expert))
  const first = [...far].sort((one, other) => (other === view.data.expert) - (one === view.data.expert))
  for (const expert of [...first, ...rest]) {
    const y = TOP + (expert + 0.5) * plan.row
    if (taken.some((other) => Math.abs(other - y) < LABEL_HIGH)) continue
    taken.push(y)
    const strong = far.has(expert)
    const style = { align: "right", size: 10.5, weight: strong ? 600 : 400 }
    const ink = expert === view.data.expert ? tokens.link : strong ? tokens.text : tokens.faint
    text(context, String(expert), LEFT - 5, y, ink, style)
    if (plan.axis.count) text(context, times(now(view, expert)), view.width - 30, y, ink, style)
  }
}

function drawCv(context, view, plan) {
  const { tokens, frame } = view
  const { cv } = frame.arrays
  let most = 6
  for (const value of cv.values) if (Number.isFinite(value) && value > most) most = value
  const top = Math.log2(most * 1.1)
  const low = Math.log2(0.7)
  const y = (value) => plan.cvTop + plan.cvHigh * (1 - (Math.log2(Math.max(value, 0.7)) - low) / (top - low))
  for (const [mark, color, ink] of floorLines(frame, tokens)) {
    line(context, LEFT, y(mark), LEFT + plan.wide, y(mark), color, { dash: [1.5, 3] })
    text(context, `${mark}×`, LEFT - 5, y(mark), ink, { align: "right", size: 10.5 })
  }
  strokeSeries(context, plan, (column) => y(cv.values[column]), tokens.text, 1.3)
  hatchGaps(context, view, plan, plan.cvTop, plan.cvHigh)
  if (!plan.axis.count) return
  const last = cv.values[shownColumn(view)]
  if (Number.isFinite(last)) text(context, `${last.toFixed(1)}×`, LEFT + plan.wide + 6, y(last), tokens.text, { size: 11.5, weight: 600 })
}

function drawBias(context, view, plan) {
  const { tokens, frame } = view
  const { bias } = frame.arrays
  const { count } = plan.axis
  const change = (expert, column) => bias.values[expert * count + column] - bias.values[expert * count]
  let [low, high] = [-1e-6, 1e-6]
  for (let expert = 0; expert < plan.experts; expert++) {
    for (let column = 0; column < count; column++) {
      const value = change(expert, column)
      if (value < low) low = value
      if (value > high) high = value
    }
  }
  const pad = (high - low) * 0.08
  const y = (value) => plan.biasTop + (plan.biasHigh * (high + pad - value)) / (high - low + 2 * pad)
  line(context, LEFT, y(0), LEFT + plan.wide, y(0), tokens.rule)
  text(context, "0", LEFT - 5, y(0), tokens.faint, { align: "right", size: 10.5 })
  const far = farthest(view)
  const order = [...Array(plan.experts).keys()].sort((one, other) => far.includes(one) - far.includes(other))
  for (const expert of order) {
    const strong = far.includes(expert)
    // The bias rises where the load is too small: its line wears the colour of the load it answers.
    const load = count ? Math.log2(Math.max(now(view, expert), 0.01)) : 0
    const chosen = expert === view.data.expert
    const told = loadColor(tokens, load < 0 ? Math.min(load, -0.8) : Math.max(load, 0.8))
    const color = chosen ? tokens.link : strong ? told : tokens.off
    strokeSeries(context, plan, (column) => y(change(expert, column)), color, chosen ? 2.2 : strong ? 1.6 : 0.7)
  }
  hatchGaps(context, view, plan, plan.biasTop, plan.biasHigh)
  line(context, LEFT, plan.biasTop + plan.biasHigh, LEFT + plan.wide, plan.biasTop + plan.biasHigh, tokens["strong-rule"])
  labelBias(context, view, plan, far, change, y, high - low)
}

function labelBias(context, view, plan, far, change, y, span) {
  const { tokens } = view
  if (!plan.axis.count) return
  const last = shownColumn(view)
  const digits = span >= 20 ? 1 : span >= 2 ? 2 : span >= 0.02 ? 3 : span >= 0.002 ? 4 : 5
  let below = -Infinity
  for (const expert of [...far].sort((one, other) => change(other, last) - change(one, last))) {
    const at = Math.max(y(change(expert, last)), below + 12)
    below = at
    const ink = expert === view.data.expert ? tokens.link : tokens.text
    text(context, String(expert), LEFT + plan.wide + 6, at, ink, { size: 11, weight: 600 })
    text(context, signed(change(expert, last), digits), LEFT + plan.wide + 24, at, tokens.muted, { size: 10.5 })
  }
}

// The share of tokens that took a skip slot, from nothing to the most of this window; left out where there is none.
function drawSkip(context, view, plan) {
  if (!plan.skips) return
  const { tokens, frame } = view
  const { values } = frame.arrays.skip_share
  let most = 0
  for (const value of values) if (value > most) most = value
  const low = plan.skipTop + SKIP_HIGH
  line(context, LEFT, low, LEFT + plan.wide, low, tokens["strong-rule"])
  context.fillStyle = css(tokens.warn)
  for (let column = 0; column < plan.axis.count; column++) {
    if (!(values[column] > 0)) continue
    const [x, wide] = plan.axis.span(column)
    const high = (values[column] / most) * SKIP_HIGH
    context.fillRect(LEFT + x, low - high, wide, high)
  }
  text(context, percent(values[shownColumn(view)]), LEFT + plan.wide + 6, low - 6, tokens["warn-text"], { size: 11, weight: 600 })
}

const percent = (share) => (Number.isFinite(share) ? `${(share * 100).toFixed(2)} %` : "–")

// The names of the parts, over the lines that run through all of them.
function drawTitles(context, view, plan) {
  const { tokens, frame } = view
  const floor = frame.header.floor_cv
  const titles = [
    [plan.cvTop, "CV ÷ sampling floor", floor ? `floor ${floor.toFixed(3)}: perfect balance with this batch` : ""],
    [plan.biasTop, "balancing bias b, change since window start", "a line an expert"],
  ]
  if (plan.skips) titles.push([plan.skipTop, "skip share", "tokens that no expert took"])
  for (const [top, words, more] of titles) {
    const strong = widthOf(context, words, 11.5, 500)
    const wide = strong + (more ? widthOf(context, more, 10.5) + 16 : 4)
    context.fillStyle = css(tokens.bg)
    context.fillRect(LEFT, top - 19, wide, 16)
    text(context, words, LEFT, top - 11, tokens.text, { size: 11.5, weight: 500 })
    text(context, more, LEFT + strong + 12, top - 11, tokens.faint, { size: 10.5 })
  }
}

function drawWaiting(view) {
  const high = TOP + 160 + TITLE + CV_HIGH + TITLE + BIAS_HIGH + TICKS
  const context = view.begin(high)
  const words = view.state.missed ? `no samples of layer ${two(view.data.layer ?? 0, 40)} yet` : "waiting for the samples"
  for (const [top, size] of [[TOP, 160], [TOP + 160 + TITLE, CV_HIGH], [TOP + 160 + 2 * TITLE + CV_HIGH, BIAS_HIGH]]) {
    context.fillStyle = css(view.tokens.panel)
    context.fillRect(LEFT, top, Math.max(20, view.width - LEFT - RIGHT), size)
  }
  text(context, words, view.width / 2, TOP + 80, view.tokens.muted, { align: "center", size: 12.5 })
}
