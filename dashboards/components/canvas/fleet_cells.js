// A GPU as a cell: what its state and its measures look like, the same in the grid, the ribbon and the histograms.

import { box, css, hatch, mix, sequenceColor, text } from "./paint.js"

export const STATES = ["training", "idle", "warning", "fault", "drained", "nodata"]
export const WORDS = { training: "training", idle: "idle", warning: "warning", fault: "fault", drained: "drained", nodata: "no data" }
const GLYPHS = { warning: "!", fault: "×", drained: "–" }
// What a measure runs over at least, so that a calm fleet does not look alarming: name, unit, from, to.
export const MEASURES = {
  temperature: { title: "Temperature", unit: "°C", from: 30, to: 100, array: "temperature" },
  power: { title: "Power", unit: "W", from: 100, to: 750, array: "power" },
  ecc: { title: "Uncorrectable ECC", unit: "", from: 0, to: 10, array: "ecc", loud: (value) => value > 0 },
  xgmi: { title: "XGMI links up", unit: "", from: 0, to: 7, array: "xgmi", loud: (value) => value < 7 },
  nic: { title: "NIC link", unit: "", from: 0, to: 1, array: "nic", loud: (value) => value === 0 },
  job: { title: "Job", unit: "", from: -1, to: 1, array: "job" },
}
// From this many pixels up a cell has room for its glyph.
const GLYPH_FROM = 9
// From this width on it has room for its temperature and power.
const WORDS_FROM = 110

// The frame says what its numbers mean.
export const namesOf = (frame) => frame.header.states ?? STATES

export function stateOf(frame, node, gpu) {
  const { gpus } = frame.header
  return namesOf(frame)[frame.arrays.state.values[node * gpus + gpu]] ?? "nodata"
}

export function measureOf(frame, measure, node, gpu) {
  const values = frame.arrays[MEASURES[measure].array]?.values
  return values ? values[node * frame.header.gpus + gpu] : NaN
}

// How many GPUs are in each state.
export function countStates(frame) {
  const names = namesOf(frame)
  const counts = Object.fromEntries(STATES.map((state) => [state, 0]))
  for (const value of frame.arrays.state.values) counts[names[value] ?? "nodata"] += 1
  return counts
}

// The worst state of a node, and the first GPU that is in it.
export function worstOf(frame, node) {
  for (const state of ["fault", "warning"]) {
    for (let gpu = 0; gpu < frame.header.gpus; gpu++) if (stateOf(frame, node, gpu) === state) return { state, gpu }
  }
  for (const state of ["nodata", "drained"]) if (stateOf(frame, node, 0) === state) return { state, gpu: 0 }
  return { state: stateOf(frame, node, 0), gpu: 0 }
}

export function drawCell(context, tokens, frame, node, gpu, [x, y, width, height], measure) {
  const state = stateOf(frame, node, gpu)
  if (state === "nodata") return hatch(context, x, y, width, height, tokens.faint, 4)
  if (measure && measure !== "state") return drawMeasure(context, tokens, frame, node, gpu, [x, y, width, height], measure)
  const fill = { training: tokens.training, idle: tokens.idle, warning: tokens.warn, fault: tokens.fault, drained: tokens.panel }[state]
  context.fillStyle = css(fill)
  context.fillRect(x, y, width, height)
  if (state === "idle") box(context, x, y, width, height, tokens.training)
  if (state === "drained") box(context, x, y, width, height, tokens["strong-rule"])
  if (width >= WORDS_FROM && height >= 14) drawWords(context, tokens, frame, node, gpu, [x, y, width, height], state)
  const glyph = GLYPHS[state]
  if (!glyph || Math.min(width, height) < GLYPH_FROM) return undefined
  const ink = { warning: tokens["on-warn"], fault: tokens["on-fault"], drained: tokens.muted }[state]
  const size = Math.min(12, Math.max(9, height * 0.6))
  const middle = width >= WORDS_FROM ? x + 12 : x + width / 2
  return text(context, glyph, middle, y + height / 2 + 0.5, ink, { size, weight: 600, align: "center" })
}

// A wide cell says what it measures: 72 °C, 690 W.
function drawWords(context, tokens, frame, node, gpu, [x, y, width, height], state) {
  const ink = { warning: tokens["on-warn"], fault: tokens["on-fault"] }[state] ?? (state === "training" ? tokens.text : tokens.muted)
  const middle = y + height / 2 + 0.5
  const [heat, power] = [measureOf(frame, "temperature", node, gpu), measureOf(frame, "power", node, gpu)]
  if (Number.isFinite(heat)) text(context, `${heat.toFixed(0)} °C`, x + width - 58, middle, ink, { size: 10.5, align: "right" })
  if (Number.isFinite(power)) text(context, `${power.toFixed(0)} W`, x + width - 10, middle, ink, { size: 10.5, align: "right" })
}

function drawMeasure(context, tokens, frame, node, gpu, [x, y, width, height], measure) {
  const { from, to, loud: isLoud } = MEASURES[measure]
  const value = measureOf(frame, measure, node, gpu)
  if (measure === "job") return drawJob(context, tokens, frame, value, [x, y, width, height])
  if (!Number.isFinite(value)) return hatch(context, x, y, width, height, tokens.hatch, 4)
  const loud = isLoud?.(value) ?? false
  const share = (value - from) / (to - from)
  const worse = measure === "ecc" ? share : 1 - share
  // a link that is up is quiet: only what is lost stands out
  const quiet = isLoud ? tokens.training : sequenceColor(tokens, share)
  context.fillStyle = css(loud ? mix(tokens["fault-soft"], tokens.fault, 0.4 + 0.6 * Math.min(1, worse)) : quiet)
  context.fillRect(x, y, width, height)
  const words = loud ? (measure === "nic" ? "×" : String(value)) : isLoud ? "" : value.toFixed(0)
  if (!words || width < (loud ? GLYPH_FROM : 26) || height < GLYPH_FROM) return undefined
  const ink = loud ? tokens["on-fault"] : share > 0.42 ? tokens.bg : tokens.text
  return text(context, words, x + width / 2, y + height / 2 + 0.5, ink, { size: Math.min(10.5, height), align: "center" })
}

// Jobs are told apart by shade and, where there is room, by name; a node of no job is an outline.
function drawJob(context, tokens, frame, value, [x, y, width, height]) {
  if (!Number.isFinite(value)) return box(context, x, y, width, height, tokens["strong-rule"])
  const { jobs } = frame.header
  const share = (value + 1) / (jobs.length + 1)
  context.fillStyle = css(sequenceColor(tokens, share))
  context.fillRect(x, y, width, height)
  if (width < WORDS_FROM || height < 14) return undefined
  const ink = share > 0.42 ? tokens.bg : tokens.text
  return text(context, jobs[value] ?? "", x + 10, y + height / 2 + 0.5, ink, { size: 10.5 })
}
