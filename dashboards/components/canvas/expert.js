// One expert over time among the others of its layer: its load, its bias, its rank, and since when it gets nothing.
//
// The frame is the layer's own (raster); without a chosen expert it is the one farthest from a fair share.

import { moment } from "./moment.js"
import { css, duration, grouped, line, loadColor, signed, text, times, veil, widthOf } from "./paint.js"
import { axisOf, columnOf, drawMarks, drawTicks, hatchGaps, placeNow, strokeSeries, timed } from "./time_axis.js"
import { kept } from "./grid.js"

const LEFT = 40
const RIGHT = 64
const FACTS = 58
// The names of marks stand between the facts and the first title.
const NAMES = 14
const TITLE = 22
const HIGHS = [128, 96, 72]
const TICKS = 36
const TITLES = [
  ["load, × of 1/E", "grey: all experts of the layer, and the middle half of them"],
  ["balancing bias b", "rises where the load is too small"],
  ["rank by load", "1 is the fullest expert of the layer"],
]

export const expert = {
  ...timed,

  draw(view) {
    if (!view.frame) return drawWaiting(view)
    const plan = planOf(view)
    const context = view.begin(plan.height)
    view.plan = plan
    if (!plan.axis.count) return
    drawFacts(context, view, plan)
    drawLoad(context, view, plan)
    drawBias(context, view, plan)
    drawRank(context, view, plan)
    drawMarks(context, view, plan, FACTS + 4)
    TITLES.forEach(([words, more], index) => title(context, view, plan.tops[index], words, more))
    drawTicks(context, view, plan)
    if (view.stale) veil(context, view.tokens, LEFT, plan.tops[0], plan.wide, HIGHS[0], view.staleWords())
  },

  words(view, given) {
    const place = view.plan && placeNow(view, given)
    if (!place || place.column >= view.plan.axis.count) return [{ text: "Point at a moment; click or Enter shows it everywhere." }]
    const { chosen, axis } = view.plan
    const at = (values) => values[chosen * axis.count + place.column]
    const { ranks } = factsOf(view, chosen)
    const load = at(view.frame.arrays.share.values) * view.plan.experts
    const told = Number.isFinite(load) ? [times(load), `rank ${ranks[place.column]}`] : ["not recorded"]
    const parts = [...told, `bias ${signed(at(view.frame.arrays.bias.values), 4)}`]
    return [{ text: `step ${grouped(axis.steps[place.column])} · expert ${chosen}`, strong: true }, { text: parts.join("  ·  ") }]
  },

  label(view) {
    if (!view.plan?.axis?.count) return "No samples of this expert in this window."
    return factWords(view, view.plan).map(([name, value, more]) => `${name} ${value} ${more}`).join("; ")
  },
}

function planOf(view) {
  const [experts, count] = view.frame.arrays.share.shape
  const wide = Math.max(60, view.width - LEFT - RIGHT)
  const tops = [FACTS + NAMES + TITLE]
  for (const high of HIGHS) tops.push(tops.at(-1) + high + TITLE)
  const bottom = tops[3] - TITLE
  const { data } = view
  const chosen = data.expert !== null && data.expert < experts ? data.expert : farthestOne(view, experts, count)
  return { experts, chosen, left: LEFT, wide, top: tops[0] - TITLE + 4, titleWide: 0, tops, bottom, height: bottom + TICKS, axis: axisOf(view.frame, wide, count) }
}

const endOf = (view) => columnOf(view.frame.arrays.steps.values, moment.step) ?? view.frame.arrays.steps.values.length - 1

function farthestOne(view, experts, count) {
  const { values } = view.frame.arrays.share
  const far = (one) => Math.abs(Math.log2(Math.max(values[one * count + endOf(view)] * experts, 0.01)))
  let best = 0
  for (let one = 1; one < experts; one++) if (far(one) > far(best)) best = one
  return best
}

// Of each column: the expert's rank by load (1 is the fullest) and, over the layer, the least, the quartiles and the most.
function factsOf(view, chosen) {
  const { frame } = view
  return kept(view, "facts", [frame, chosen], () => {
    const [experts, count] = frame.arrays.share.shape
    const ranks = new Float64Array(count)
    const band = (values) => Array.from({ length: 5 }, () => new Float64Array(count)).map((row) => ({ row, values }))
    const bands = { share: band(frame.arrays.share.values), bias: band(frame.arrays.bias.values) }
    const column = new Float64Array(experts)
    for (let at = 0; at < count; at++) {
      for (const of of Object.values(bands)) {
        for (let one = 0; one < experts; one++) column[one] = of[0].values[one * count + at]
        if (of === bands.share) {
          const above = column.reduce((sum, value) => sum + (value > column[chosen]), 0)
          ranks[at] = Number.isFinite(column[chosen]) ? 1 + above : NaN
        }
        column.sort()
        of.forEach(({ row }, part) => (row[at] = column[Math.round(((experts - 1) * part) / 4)]))
      }
    }
    const rows = (of) => of.map(({ row }) => row)
    return { ranks, share: rows(bands.share), bias: rows(bands.bias) }
  })
}

// Since which step it has had no token, as far back as the window reaches; null while it has some.
function silentSince(view, chosen, end) {
  const { share, steps } = view.frame.arrays
  const count = share.shape[1]
  let since = null
  for (let column = end; column >= 0 && share.values[chosen * count + column] === 0; column--) since = column
  return since === null ? null : { column: since, step: steps.values[since] }
}

function factWords(view, plan) {
  const { share, bias, at_s: at } = view.frame.arrays
  const { chosen, experts, axis } = plan
  const end = endOf(view)
  const value = share.values[chosen * axis.count + end]
  if (!Number.isFinite(value)) return unrecorded(view, plan, end)
  const { ranks } = factsOf(view, chosen)
  const silent = silentSince(view, chosen, end)
  const lasted = silent && at ? duration(at.values[end] - at.values[silent.column]) : ""
  const since = silent ? (silent.column ? `since step ${grouped(silent.step)}, ${lasted}` : "in this whole window") : "it gets tokens"
  const moved = bias.values[chosen * axis.count + end] - bias.values[chosen * axis.count]
  return [
    [`load of expert ${chosen}`, `${(value * experts).toFixed(2)}×`, `${(value * 100).toFixed(2)} %, fair ${(100 / experts).toFixed(2)} %`],
    ["rank by load", String(ranks[end]), `of ${experts}, 1 is the fullest`],
    ["balancing bias", signed(bias.values[chosen * axis.count + end], 4), `${signed(moved, 4)} in this window`],
    ["without tokens", silent ? "yes" : "no", since],
  ]
}

// Of a moment in which no token of the layer was recorded: that is no data, and no expert that gets nothing.
function unrecorded(view, { chosen, experts, axis }, end) {
  const bias = view.frame.arrays.bias.values[chosen * axis.count + end]
  return [
    [`load of expert ${chosen}`, "–", "not recorded"],
    ["rank by load", "–", `of ${experts}`],
    ["balancing bias", signed(bias, 4), Number.isFinite(bias) ? "" : "not recorded"],
    ["without tokens", "–", "not recorded"],
  ]
}

function drawFacts(context, view, plan) {
  const { tokens } = view
  const wide = view.width / 4
  factWords(view, plan).forEach(([name, value, more], index) => {
    const x = index * wide + (index ? 12 : 0)
    if (index) line(context, index * wide, 4, index * wide, FACTS - 10, tokens.rule)
    text(context, name, x, 9, tokens.muted, { size: 11.5 })
    text(context, value, x, 27, index === 3 && value === "yes" ? tokens["fault-text"] : tokens.text, { size: 18, weight: 500 })
    text(context, more, x, 44, tokens.faint, { size: 11 })
  })
}

// Over the lines that run through all parts.
function title(context, view, top, words, more) {
  const wide = widthOf(context, words, 11.5, 500)
  context.fillStyle = css(view.tokens.bg)
  context.fillRect(LEFT, top - 19, wide + widthOf(context, more, 10.5) + 16, 16)
  text(context, words, LEFT, top - 11, view.tokens.text, { size: 11.5, weight: 500 })
  text(context, more, LEFT + wide + 12, top - 11, view.tokens.faint, { size: 10.5 })
}

// A band between two rows of values, a piece for each stretch between the gaps.
function fillBand(context, plan, y, lower, upper, color, alpha) {
  context.fillStyle = css(color, alpha)
  let begin = 0
  for (let column = 1; column <= plan.axis.count; column++) {
    if (column < plan.axis.count && !plan.axis.breaksBefore(column)) continue
    context.beginPath()
    for (let at = begin; at < column; at++) context.lineTo(LEFT + plan.axis.span(at)[0], y(upper[at]))
    const [last, wide] = plan.axis.span(column - 1)
    context.lineTo(LEFT + last + wide, y(upper[column - 1]))
    context.lineTo(LEFT + last + wide, y(lower[column - 1]))
    for (let at = column - 1; at >= begin; at--) context.lineTo(LEFT + plan.axis.span(at)[0], y(lower[at]))
    context.fill()
    begin = column
  }
}

function drawLoad(context, view, plan) {
  const { tokens } = view
  const { chosen, experts, axis } = plan
  const top = plan.tops[0]
  const { share } = factsOf(view, chosen)
  const y = (value) => top + HIGHS[0] * (0.5 - Math.max(-2, Math.min(2, Math.log2(Math.max(value * experts, 1e-3)))) / 4)
  for (const [times, words] of [[4, "4×"], [2, "2×"], [1, "1/E"], [0.5, "½×"], [0.25, "¼×"]]) {
    line(context, LEFT, y(times / experts), LEFT + plan.wide, y(times / experts), times === 1 ? tokens["strong-rule"] : tokens.rule)
    text(context, words, LEFT - 6, y(times / experts), tokens.faint, { align: "right", size: 10.5 })
  }
  fillBand(context, plan, y, share[0], share[4], tokens.off, 0.22)
  fillBand(context, plan, y, share[1], share[3], tokens.off, 0.3)
  hatchGaps(context, view, plan, top, HIGHS[0])
  const { values } = view.frame.arrays.share
  strokeSeries(context, plan, (column) => y(values[chosen * axis.count + column]), tokens.link, 1.8)
  const last = values[chosen * axis.count + endOf(view)]
  const ink = loadColor(tokens, last > 0 ? Math.log2(last * experts) : -2)
  text(context, times(last * experts), LEFT + plan.wide + 6, y(last), ink === tokens["scale-0"] ? tokens.muted : tokens.text, { size: 11.5, weight: 600 })
}

function drawBias(context, view, plan) {
  const { tokens } = view
  const { chosen, axis } = plan
  const top = plan.tops[1]
  const { bias } = factsOf(view, chosen)
  let [low, high] = [Infinity, -Infinity]
  for (let column = 0; column < axis.count; column++) {
    if (bias[0][column] < low) low = bias[0][column]
    if (bias[4][column] > high) high = bias[4][column]
  }
  if (!(high > low)) [low, high] = [Math.min(low, 0) - 1e-6, Math.max(high, 0) + 1e-6]
  const y = (value) => top + 4 + ((HIGHS[1] - 8) * (high - value)) / (high - low)
  const digits = high - low >= 0.02 ? 3 : high - low >= 0.002 ? 4 : 5
  for (const mark of [high, low]) {
    line(context, LEFT, y(mark), LEFT + plan.wide, y(mark), tokens.rule)
    text(context, signed(mark, Math.min(digits, 3)), LEFT - 6, y(mark), tokens.faint, { align: "right", size: 10 })
  }
  fillBand(context, plan, y, bias[0], bias[4], tokens.off, 0.22)
  fillBand(context, plan, y, bias[1], bias[3], tokens.off, 0.3)
  hatchGaps(context, view, plan, top, HIGHS[1])
  const { values } = view.frame.arrays.bias
  strokeSeries(context, plan, (column) => y(values[chosen * axis.count + column]), tokens.link, 1.8)
  const last = values[chosen * axis.count + endOf(view)]
  text(context, signed(last, digits), LEFT + plan.wide + 6, y(last), tokens.text, { size: 11.5, weight: 600 })
}

function drawRank(context, view, plan) {
  const { tokens } = view
  const { chosen, experts } = plan
  const top = plan.tops[2]
  const { ranks } = factsOf(view, chosen)
  const y = (rank) => top + 4 + ((HIGHS[2] - 8) * (rank - 1)) / Math.max(1, experts - 1)
  for (const mark of [1, Math.ceil(experts / 2), experts]) {
    line(context, LEFT, y(mark), LEFT + plan.wide, y(mark), tokens.rule)
    text(context, String(mark), LEFT - 6, y(mark), tokens.faint, { align: "right", size: 10.5 })
  }
  hatchGaps(context, view, plan, top, HIGHS[2])
  strokeSeries(context, plan, (column) => y(ranks[column]), tokens.link, 1.3)
  const last = ranks[endOf(view)]
  text(context, String(last), LEFT + plan.wide + 6, y(last), tokens.text, { size: 11.5, weight: 600 })
  line(context, LEFT, plan.bottom, LEFT + plan.wide, plan.bottom, tokens["strong-rule"])
}

function drawWaiting(view) {
  const context = view.begin(FACTS + NAMES + HIGHS.reduce((sum, high) => sum + high + TITLE, 0) + TICKS)
  context.fillStyle = css(view.tokens.panel)
  context.fillRect(LEFT, FACTS + NAMES + TITLE, Math.max(20, view.width - LEFT - RIGHT), HIGHS[0])
  const words = view.state.missed ? "no samples of this layer yet" : "waiting for the samples"
  text(context, words, view.width / 2, FACTS + TITLE + HIGHS[0] / 2, view.tokens.muted, { align: "center", size: 12.5 })
}
