// Expert parallelism: what each rank of a layer carries of the mean rank's load, and the fullest rank of each layer.
//
// The slowest rank sets the pace of a layer, so max over mean is what imbalance costs. A run that lays its experts out on
// one rank has no such picture, and says so.

import { drawGrid, gridOf, kept, pointing, scales } from "./grid.js"
import { box, css, hatch, line, loadColor, text, two, veil } from "./paint.js"
import { levelIn, thresholdsOf } from "./rules.js"
import { none, some } from "./words.js"

const LEFT = 28
const HEAD = 52
const SIDE = 168
const FOOT = 4

export const ranks = {
  draw(view) {
    if (!view.frame) return drawWaiting(view)
    const loads = view.frame.arrays.rank_load
    if (!loads) {
      view.board = null
      return none(view, "This run declares no expert parallelism: every rank holds all experts of its layers, so no rank waits for a fuller one.")
    }
    some(view)
    const [layers, count] = loads.shape
    const row = Math.max(5, Math.min(20, 480 / layers))
    const board = { layers, count, row, wide: Math.max(60, view.width - LEFT - SIDE), bottom: HEAD + row * layers }
    view.board = board
    const context = view.begin(board.bottom + FOOT)
    drawHeads(context, view, board)
    const cells = kept(view, "cells", [view.frame, view.tokens], () =>
      gridOf(layers, count, (layer, rank) => shade(loads.values[layer * count + rank]), scales(view).load))
    const gapX = board.wide / count >= 4 ? 1 : 0
    drawGrid(context, cells, { x: LEFT, y: HEAD, width: board.wide, height: row * layers, background: view.tokens.bg, gapX, gapY: row >= 6 ? 1 : 0 })
    drawSide(context, view, board)
    const { layer } = view.data
    if (layer !== null && layer < layers) box(context, LEFT - 2, HEAD + layer * row - 1.5, view.width - LEFT + 1, row + 2, view.tokens.link, 1.5)
    if (view.stale) veil(context, view.tokens, LEFT, HEAD, board.wide, row * layers, view.staleWords())
  },

  ...pointing({ left: LEFT, head: HEAD, name: "rank", count: "count" }),

  pick: (view, place) => view.component.setTriggerValue("pick", { layer: place.layer, expert: null }),

  words(view, place) {
    const { board, frame } = view
    if (!board) return []
    const layer = place?.layer ?? view.data.layer ?? 0
    if (layer >= board.layers) return []
    const row = rowOf(view, layer)
    if (!Number.isFinite(row.most)) return [{ text: `layer ${two(layer, board.layers)}`, strong: true }, { text: "no tokens recorded" }]
    const parts = [`fullest rank ${row.fullest} at ${row.most.toFixed(2)}× the mean`]
    const rank = place?.rank ?? null
    if (rank !== null) {
      const each = frame.header.experts / board.count
      parts.unshift(`rank ${rank}, experts ${Math.round(rank * each)}–${Math.round((rank + 1) * each) - 1}: ${frame.arrays.rank_load.values[layer * board.count + rank].toFixed(2)}×`)
    }
    return [{ text: `layer ${two(layer, board.layers)}`, strong: true }, { text: parts.join("  ·  ") }]
  },

  label(view) {
    if (!view.frame?.arrays.rank_load) return "This run declares no expert parallelism."
    const { shape } = view.frame.arrays.rank_load
    const most = Math.max(...Array.from({ length: shape[0] }, (_, layer) => rowOf(view, layer).most))
    if (!Number.isFinite(most)) return "Load of expert-parallel ranks: no tokens recorded."
    return `Load of ${shape[1]} expert-parallel ranks by ${shape[0]} layers: the fullest rank carries ${most.toFixed(2)} times the mean.`
  },
}

// A rank's load on the colours of the load, twice as strong: at 1.3x a rank is already a problem.
const shade = (value) => 2 * Math.log2(Math.max(value, 0.05))

function rowOf(view, layer) {
  const { values, shape } = view.frame.arrays.rank_load
  let [most, fullest] = [-Infinity, 0]
  for (let rank = 0; rank < shape[1]; rank++) {
    const value = values[layer * shape[1] + rank]
    if (value > most) [most, fullest] = [value, rank]
  }
  return { most, fullest }
}

function drawHeads(context, view, board) {
  const { tokens } = view
  for (let x = 0; x < 160; x++) {
    context.fillStyle = css(loadColor(tokens, (x / 159) * 4 - 2))
    context.fillRect(LEFT + x, 4, 1, 8)
  }
  ;["½×", "0.7×", "mean", "1.4×", "2×"].forEach((mark, index) => text(context, mark, LEFT + 40 * index, 21, tokens.muted, { align: "center", size: 10.5 }))
  const wide = board.wide / board.count
  const every = Math.max(1, Math.ceil(26 / wide))
  for (let rank = 0; rank < board.count; rank += every) {
    text(context, String(rank), LEFT + (rank + 0.5) * wide, HEAD - 9, tokens.faint, { align: "center", size: 10.5 })
  }
  text(context, "rank", LEFT - 6, HEAD - 9, tokens.faint, { align: "right", size: 10.5 })
  const at = sideX(view, board)
  text(context, "max ÷ mean", LEFT + board.wide + 16, HEAD - 23, tokens.muted, { size: 11 })
  for (const [mark, , ink] of skewLines(view)) text(context, String(mark), at(mark), HEAD - 9, ink, { align: "center", size: 10.5 })
}

const skewLines = ({ frame, tokens }) => {
  const { skew: warn, worse_skew: fault } = thresholdsOf(frame, "expert-parallel-skew")
  return [[fault, tokens.fault, tokens["fault-text"]], [warn, tokens.warn, tokens["warn-text"]]]
}

const sideX = (view, board) => (value) => LEFT + board.wide + 18 + 90 * Math.max(0, Math.min(1, Math.log2(Math.max(value, 1)) / Math.log2(1.6)))

// The fullest rank of each layer as the map's own column: a dot, a disc with "!", a square with ×.
function drawSide(context, view, board) {
  const { tokens, frame } = view
  const at = sideX(view, board)
  line(context, at(1), HEAD, at(1), board.bottom, tokens.rule)
  for (const [mark, color] of skewLines(view)) line(context, at(mark), HEAD, at(mark), board.bottom, color, { dash: [1.5, 3] })
  for (let layer = 0; layer < board.layers; layer++) {
    const middle = HEAD + (layer + 0.5) * board.row
    const { most } = rowOf(view, layer)
    const level = levelIn(frame, "skewed", layer)
    const chosen = layer === view.data.layer
    if (board.row >= 10 || chosen || !(layer % Math.ceil(11 / board.row))) {
      text(context, two(layer, board.layers), LEFT - 6, middle, chosen ? tokens.link : tokens.faint, { align: "right", size: 10.5, weight: chosen ? 600 : 400 })
    }
    if (!Number.isFinite(most)) {
      hatch(context, LEFT, HEAD + layer * board.row, board.wide, board.row - 1, tokens.hatch)
      continue
    }
    const color = { ok: tokens.muted, warn: tokens.warn, fault: tokens.fault }[level]
    line(context, at(1), middle, at(most), middle, color, { width: level === "ok" ? 1 : 1.5 })
    context.fillStyle = css(color)
    if (level === "fault") context.fillRect(at(most) - 3, middle - 3, 6, 6)
    else {
      context.beginPath()
      context.arc(at(most), middle, level === "ok" ? 2 : 3, 0, 7)
      context.fill()
    }
    if (level === "ok" || board.row < 9) continue
    const ink = tokens[`${level}-text`]
    text(context, `${level === "warn" ? "!" : "×"} ${most.toFixed(2)}`, at(most) + 7, middle, ink, { size: 11, weight: 600 })
  }
}

function drawWaiting(view) {
  some(view)
  const context = view.begin(HEAD + 160)
  context.fillStyle = css(view.tokens.panel)
  context.fillRect(LEFT, HEAD, Math.max(20, view.width - LEFT - SIDE), 160)
  const words = view.state.missed ? "no frame yet; tried again each second" : "waiting for the first frame"
  text(context, words, view.width / 2, HEAD + 80, view.tokens.muted, { align: "center", size: 12.5 })
}
