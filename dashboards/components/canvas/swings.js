// The oscillation map: a row a layer, a column a lag; how the loads repeat after so many steps.
//
// Dark against light in stripes is a controller that overshoots; the stripes' distance is its period. One colour fading
// along a row is a load that drifts. Chance is grey. Which layers swing is what the alarm names, never judged here.

import { drawGrid, gridOf, kept, pointing, scales } from "./grid.js"
import { box, css, hatch, signedColor, text, two, veil } from "./paint.js"
import { levelIn } from "./rules.js"

const LEFT = 28
const RIGHT = 96
const HEAD = 38
const FOOT = 4
const SIGN = { ok: "", warn: "! ", fault: "× " }

export const swings = {
  draw(view) {
    if (!view.frame) return drawWaiting(view)
    const board = boardOf(view)
    view.board = board
    const context = view.begin(board.bottom + FOOT)
    drawHeads(context, view, board)
    const { values } = view.frame.arrays.autocorrelation
    const cells = kept(view, "cells", [view.frame, view.tokens], () =>
      gridOf(board.layers, board.lags, (layer, lag) => values[layer * board.lags + lag], scales(view).signed))
    drawGrid(context, cells, {
      x: LEFT, y: HEAD, width: board.wide, height: board.bottom - HEAD, background: view.tokens.bg, gapX: 1, gapY: board.row >= 6 ? 1 : 0,
    })
    for (let layer = 0; layer < board.layers; layer++) drawRow(context, view, board, layer)
    const { layer } = view.data
    if (layer !== null && layer < board.layers) box(context, LEFT - 2, HEAD + layer * board.row - 2, board.wide + 3, board.row + 3, view.tokens.link, 1.5)
    if (view.stale) veil(context, view.tokens, LEFT, HEAD, board.wide, board.bottom - HEAD, view.staleWords())
  },

  ...pointing({ left: LEFT, head: HEAD, name: "lag", count: "lags" }),

  pick: (view, place) => view.component.setTriggerValue("pick", { layer: place.layer, expert: null }),

  words(view, place) {
    const { board, frame } = view
    if (!board) return []
    const layer = place?.layer ?? view.data.layer ?? 0
    if (layer >= board.layers) return []
    const lag = place?.lag ?? 0
    const value = frame.arrays.autocorrelation.values[layer * board.lags + lag]
    const found = Number.isFinite(value) ? value.toFixed(2).replace("-", "−") : "not known"
    return [{ text: `layer ${two(layer, board.layers)}`, strong: true }, { text: `after ${lag + 1} step${lag ? "s" : ""}: ${found}` }]
  },

  label(view) {
    if (!view.board) return "Oscillation map: no window yet."
    const found = swinging(view)
    const named = found.length > 1 ? `layers ${found.join(", ")} swing` : `layer ${found[0]} swings`
    const told = found.length ? named : view.frame.header.judged ? "no layer swings" : "not judged: in the warm-up, or too few steps"
    return `Autocorrelation of the loads of ${view.board.layers} layers by lag, over ${view.frame.header.steps} steps: ${told}.`
  },
}

function swinging(view) {
  const layers = view.frame.arrays.autocorrelation.shape[0]
  return Array.from({ length: layers }, (_, layer) => layer).filter((layer) => levelIn(view.frame, "swinging", layer) !== "ok")
}

function boardOf(view) {
  const [layers, lags] = view.frame.arrays.autocorrelation.shape
  const row = Math.max(5, Math.min(16, 260 / layers))
  const loud = [...swinging(view), view.data.layer ?? -9]
  return { layers, lags, row, loud, wide: Math.max(60, view.width - LEFT - RIGHT), bottom: HEAD + row * layers }
}

function drawHeads(context, view, board) {
  const { tokens } = view
  for (let x = 0; x < 96; x++) {
    context.fillStyle = css(signedColor(tokens, (x / 95) * 2 - 1))
    context.fillRect(LEFT + x, 4, 1, 8)
  }
  text(context, "−1 turns round", LEFT + 102, 8.5, tokens.muted, { size: 10.5 })
  text(context, "grey: chance", LEFT + 190, 8.5, tokens.muted, { size: 10.5 })
  text(context, "+1 repeats", LEFT + 266, 8.5, tokens.muted, { size: 10.5 })
  const wide = board.wide / board.lags
  text(context, "lag in steps →", LEFT + board.wide, 8.5, tokens.muted, { size: 10.5, align: "right" })
  for (let lag = 0; lag < board.lags; lag++) {
    if (lag !== 0 && (lag + 1) % 4) continue
    text(context, String(lag + 1), LEFT + (lag + 0.5) * wide, HEAD - 8, tokens.faint, { align: "center", size: 10.5 })
  }
  text(context, "lag 1", LEFT + board.wide + 12, HEAD - 8, tokens.muted, { size: 10.5 })
  text(context, "period", view.width - 2, HEAD - 8, tokens.muted, { size: 10.5, align: "right" })
}

function drawRow(context, view, board, layer) {
  const { tokens, frame } = view
  const middle = HEAD + (layer + 0.5) * board.row
  const first = frame.arrays.autocorrelation.values[layer * board.lags]
  if (!Number.isFinite(first)) hatch(context, LEFT, middle - board.row / 2, board.wide, board.row - 1, tokens.hatch)
  const level = levelIn(frame, "swinging", layer)
  const swings = level !== "ok"
  const chosen = layer === view.data.layer
  // Rows lower than a line of text: those that swing and the chosen one are named, of the others every few that have room.
  const apart = Math.max(1, Math.ceil(11 / board.row))
  if (!swings && !chosen && (layer % apart || board.loud.some((other) => Math.abs(other - layer) < apart))) return
  const ink = chosen ? tokens.link : swings ? tokens[`${level}-text`] : tokens.faint
  const style = { size: 10.5, weight: swings || chosen ? 600 : 400, align: "right" }
  text(context, two(layer, board.layers), LEFT - 6, middle, ink, style)
  if (!Number.isFinite(first) || !(swings || chosen)) return
  text(context, first.toFixed(2).replace("-", "−"), LEFT + board.wide + 44, middle, ink, style)
  const period = frame.arrays.period.values[layer]
  text(context, swings && Number.isFinite(period) ? `${SIGN[level]}${period.toFixed(1)}` : "–", view.width - 2, middle, ink, style)
}

function drawWaiting(view) {
  const context = view.begin(HEAD + 180)
  context.fillStyle = css(view.tokens.panel)
  context.fillRect(LEFT, HEAD, Math.max(20, view.width - LEFT - RIGHT), 170)
  const words = view.state.missed ? "known after four steps" : "waiting for the window"
  text(context, words, view.width / 2, HEAD + 85, view.tokens.muted, { align: "center", size: 12.5 })
}
