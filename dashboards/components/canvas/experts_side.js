// The columns that continue the heatmap's rows: CV over its floor and lag-1 autocorrelation of 64 steps, and the steps.

import { css, hatch, line, text } from "./paint.js"
import { isSilent, levelOf } from "./experts.js"
import { floorLines, levelIn, thresholdsOf } from "./rules.js"

// Offsets from the left end of the side columns, in pixels; a phone gets them closer together.
const WIDE = { width: 290, gap: 14, cv: 22, cvWide: 78, lag: 150, lagWide: 16, history: 198, historyWide: 88 }
const NARROW = { width: 150, gap: 8, cv: 6, cvWide: 38, lag: 98, lagWide: 9, history: 114, historyWide: 34 }
const NARROW_BELOW = 560
// With more experts than this a phone's map needs the whole width; the table below it tells the rest.
const NARROW_EXPERTS = 32
// The axis of CV over floor is logarithmic, from 0.8 to 16 times.
const CV_LOW = Math.log2(0.8)
const CV_HIGH = Math.log2(16)

export function sideOf(width, experts) {
  if (width >= NARROW_BELOW) return WIDE
  return experts <= NARROW_EXPERTS ? NARROW : null
}

export function drawSide(context, view, board) {
  const at = board.columns
  if (!at) return
  const { tokens } = view
  const left = board.side
  const cvX = (value) => left + at.cv + at.cvWide * Math.max(0, Math.min(1, (Math.log2(Math.max(value, 0.01)) - CV_LOW) / (CV_HIGH - CV_LOW)))
  drawHeads(context, view, board, left, cvX)
  line(context, cvX(1), board.top, cvX(1), board.bottom, tokens.rule)
  for (const [mark, color] of floorLines(view.frame, tokens)) {
    line(context, cvX(mark), board.top, cvX(mark), board.bottom, color, { dash: [1.5, 3] })
  }
  line(context, left + at.lag, board.top, left + at.lag, board.bottom, tokens.rule)
  const alarm = left + at.lag + thresholdsOf(view.frame, "expert-oscillation").worse_lag1 * at.lagWide
  line(context, alarm, board.top, alarm, board.bottom, tokens.fault, { dash: [1.5, 3] })
  const scale = historyScale(view)
  for (let layer = 0; layer < board.layers; layer++) {
    const middle = board.top + (layer + 0.5) * board.row
    if (isSilent(view.frame, layer)) {
      text(context, "? no data", left + at.cv - 2, middle, tokens.muted, { size: 11 })
      continue
    }
    drawCv(context, view, layer, middle, cvX)
    drawLag(context, view, layer, middle, left + at.lag, at.lagWide)
    drawHistory(context, view, board, layer, middle, left, scale)
  }
}

function drawHeads(context, view, board, left, cvX) {
  const { tokens } = view
  const at = board.columns
  const low = board.top - 10
  const phone = at === NARROW
  text(context, "CV ÷ floor", left + (phone ? 0 : at.cv - 20), low - 14, tokens.muted)
  floorLines(view.frame, tokens).forEach(([mark, , ink], index) => {
    text(context, String(mark), cvX(mark) + (phone ? [2, -3][index] : 0), low, ink, { align: "center", size: 10.5 })
  })
  text(context, "lag-1", left + at.lag - (phone ? 14 : 22), low - 14, tokens.muted)
  text(context, "−1", left + at.lag - at.lagWide, low, tokens.faint, { align: "center", size: 10.5 })
  text(context, "1", left + at.lag + at.lagWide, low, tokens.faint, { align: "center", size: 10.5 })
  const span = view.data.historyLabel ?? "newest"
  if (phone) text(context, "trace", left + at.width, low - 14, tokens.muted, { align: "right" })
  else text(context, `÷ floor, ${span}`, left + at.history, low - 14, tokens.muted)
}

// A dot for ok, a disc with "!" for a warning, a square with × for a fault: shape says it as well as colour.
function drawCv(context, view, layer, middle, cvX) {
  const { tokens, frame } = view
  const value = frame.arrays.mean_floor.values[layer]
  if (!Number.isFinite(value)) return
  const level = levelIn(frame, "uneven", layer)
  const far = level !== "ok" || value >= thresholdsOf(frame, "expert-imbalance").cv_floor
  const color = { ok: tokens.muted, warn: tokens.warn, fault: tokens.fault }[level]
  const x = cvX(value)
  line(context, cvX(1), middle, x, middle, color, { width: level === "ok" ? 1 : 1.5 })
  context.fillStyle = css(color)
  if (level === "fault") context.fillRect(x - 3, middle - 3, 6, 6)
  else {
    context.beginPath()
    context.arc(x, middle, level === "ok" ? 2 : 3, 0, 7)
    context.fill()
  }
  if (!far) return
  const sign = { ok: "", warn: "! ", fault: "× " }[level]
  const ink = { ok: tokens.muted, warn: tokens["warn-text"], fault: tokens["fault-text"] }[level]
  text(context, `${sign}${value.toFixed(1)}`, x + 7, middle + 0.5, ink, { weight: level === "ok" ? 400 : 600, size: 11 })
}

function drawLag(context, view, layer, middle, zero, most) {
  const { tokens, frame } = view
  const value = frame.arrays.lag1.values[layer]
  if (!Number.isFinite(value)) return
  const color = { ok: tokens.off, warn: tokens.warn, fault: tokens.fault }[levelIn(frame, "swinging", layer)]
  const wide = Math.max(-1, Math.min(1, value)) * most
  context.fillStyle = css(color)
  context.fillRect(zero + Math.min(0, wide), middle - 1.5, Math.max(1, Math.abs(wide)), 3)
}

// One scale for all rows, so that a taller trace is a worse layer.
function historyScale(view) {
  let most = 3
  for (const value of view.frame.arrays.history.values) if (value > most) most = value
  return Math.log2(Math.min(most, 64) + 1)
}

function drawHistory(context, view, board, layer, middle, left, scale) {
  const { tokens, frame } = view
  const at = board.columns
  const from = left + at.history
  const { shape, values } = frame.arrays.history
  const count = shape[1]
  const level = levelOf(view, layer)
  const high = board.row - 4
  const bottom = middle + high / 2
  context.beginPath()
  let drawn = false
  let last = null
  for (let column = 0; column < count; column++) {
    const value = values[layer * count + column]
    if (!Number.isFinite(value) || value <= 0) {
      drawn = false
      continue
    }
    const x = from + (column / (count - 1)) * at.historyWide
    const y = bottom - (Math.log2(value + 1) / scale) * high
    drawn ? context.lineTo(x, y) : context.moveTo(x, y)
    drawn = true
    last = [x, y]
  }
  context.lineWidth = 1
  context.strokeStyle = css(level === "ok" ? tokens.off : tokens.muted)
  context.stroke()
  if (!last) {
    hatch(context, from, middle - 2, at.historyWide, 4, tokens.hatch)
    return
  }
  if (level === "ok") return
  context.fillStyle = css(level === "fault" ? tokens.fault : tokens.warn)
  if (level === "fault") context.fillRect(last[0] - 3, last[1] - 3, 6, 6)
  else {
    context.beginPath()
    context.arc(last[0], last[1], 2.5, 0, 7)
    context.fill()
  }
}
