// Layer x expert: one row a layer, one column an expert, then the skip slot's frame; the side columns continue the rows.

import { drawSide, sideOf } from "./experts_side.js"
import { drawGrid, gridOf, kept, scales } from "./grid.js"
import {
  box, css, duration, grouped, hatch, loadColor, sequenceColor, signed, signedColor, text, two, veil,
} from "./paint.js"
import { levelIn, thresholdsOf } from "./rules.js"

const LEFT = 28
const HEAD = 56
const FOOT = 6
// What stands above and below the map on its page, in pixels.
const BELOW = 362
// The run's name above one of two maps.
const NAMED = 27
const MODES = { load: "share", counts: "counts", bias: "bias", change: "delta_bias" }

export const experts = {
  draw(view) {
    if (!view.frame) return drawWaiting(view)
    const board = boardOf(view)
    const context = view.begin(board.bottom + FOOT)
    view.board = board
    drawLegend(context, view, board)
    drawHeads(context, view, board)
    drawCells(context, view, board)
    for (let layer = 0; layer < board.layers; layer++) drawRow(context, view, board, layer)
    drawSide(context, view, board)
    drawChosen(context, view, board)
    if (view.stale) veil(context, view.tokens, LEFT, HEAD, view.width - LEFT, board.bottom - HEAD, view.staleWords())
  },

  over: (view, context) => drawPointed(context, view, view.board),

  at(view, x, y) {
    const { board } = view
    if (!board) return null
    const layer = Math.floor((y - HEAD) / board.row)
    if (layer < 0 || layer >= board.layers || y < HEAD) return null
    if (x < LEFT) return { layer, expert: null }
    if (x < board.right) return { layer, expert: Math.min(board.experts - 1, Math.floor((x - LEFT) / board.column)) }
    if (board.skips && x >= board.skip && x < board.skip + board.skipWide) return { layer, expert: board.experts }
    return x >= board.side ? { layer, expert: null } : null
  },

  move(view, place, direction) {
    const { layers, experts: count } = view.frame.header
    const from = place ?? { layer: view.data.layer ?? 0, expert: view.data.expert ?? 0 }
    if (!place) return from
    const step = { Up: [-1, 0], Down: [1, 0], Left: [0, -1], Right: [0, 1] }[direction] ?? [0, 0]
    const clamp = (value, top) => Math.max(0, Math.min(top - 1, value))
    return { layer: clamp(from.layer + step[0], layers), expert: clamp((from.expert ?? 0) + step[1], count) }
  },

  pick(view, place) {
    const expert = place.expert !== null && place.expert < view.frame.header.experts ? place.expert : null
    view.component.setTriggerValue("pick", { layer: place.layer, expert })
  },

  words(view, place) {
    const { header, arrays } = view.frame
    // Of old steps only some have their counts: then the nearest one is shown, and said.
    if (!place && header.asked !== undefined && header.asked !== header.step) {
      return [{ text: `step ${grouped(header.step)}`, strong: true }, { text: `is the nearest to ${grouped(header.asked)} whose counts are kept` }]
    }
    const at = place ?? (view.data.layer === null ? null : { layer: view.data.layer, expert: view.data.expert })
    if (!at || at.layer >= header.layers) return [{ text: "Point at a cell; click or Enter opens its layer." }]
    const name = `layer ${two(at.layer, header.layers)}`
    if (isSilent(view.frame, at.layer)) return [{ text: name, strong: true }, { text: "no data in this step" }]
    if (at.expert === null || at.expert === undefined) {
      return [{ text: name, strong: true }, { text: layerWords(view, at.layer) }]
    }
    return cellWords(view, at, name)
  },

  label(view) {
    if (!view.frame) return view.data.label ?? "no data yet"
    const { layers, experts: count, step } = view.frame.header
    const values = view.frame.arrays.mean_floor.values
    const known = [...values.keys()].filter((layer) => Number.isFinite(values[layer]))
    const worst = known.reduce((best, layer) => (values[layer] > values[best] ? layer : best), known[0])
    const dead = view.frame.arrays.dead.values.reduce((sum, value) => sum + (value > 0), 0)
    const far = known.length
      ? `layer ${worst} is the least balanced at ${values[worst].toFixed(1)} times its sampling floor over 64 steps; ${dead} dead experts`
      : "no tokens recorded over 64 steps"
    const silent = layers - known.length
    const found = known.length && silent ? `${far}; no tokens recorded of ${silent} layers` : far
    return `Load of ${layers} layers by ${count} experts at step ${step}: ${found}. ${view.data.label ?? ""}`
  },
}

// What the columns beside the map say of a layer, and how to read it.
function layerWords(view, layer) {
  const { cv_floor: cv, mean_floor: mean, lag1 } = view.frame.arrays
  const lag = lag1.values[layer]
  const turns = signed(thresholdsOf(view.frame, "expert-oscillation").lag1, 2)
  const swing = Number.isFinite(lag) ? `  ·  lag-1 ${signed(lag, 2)}, below ${turns} it turns round` : ""
  const times = (value) => (Number.isFinite(value) ? `${value.toFixed(2)}×` : "–")
  return `CV ${times(cv.values[layer])} floor in this step, ${times(mean.values[layer])} over 64; 1 is as even as chance allows${swing}`
}

// A model of few layers gets taller rows, so that its map is still a map.
const tallest = (layers) => (layers <= 12 ? 34 : layers < 24 ? 28 : 20)

// At 900 pixels all 40 rows of a model fit; very many get as little as can still be told apart.
export const rowHigh = (layers, more = 0) =>
  Math.max(layers > 48 ? 9 : 12.5, Math.min(tallest(layers), Math.floor(((window.innerHeight - BELOW - more) * 10) / layers) / 10))

function boardOf(view) {
  const { layers, experts: count, slots } = view.frame.header
  const row = rowHigh(layers, view.data.bare ? NAMED : 0)
  const skips = slots > count
  const columns = view.data.bare ? null : sideOf(view.width, count)
  const side = view.width - (columns?.width ?? 0)
  const skipWide = skips ? 20 : 0
  const right = side - (columns?.gap ?? 0) - (skips ? skipWide + 6 : 0)
  const column = (right - LEFT) / count
  return {
    layers, experts: count, slots, skips, row, column, right, skip: right + 6, skipWide, side, columns,
    bottom: HEAD + row * layers, top: HEAD, gap: column >= 4 ? 1 : 0, high: row - (row >= 6 ? 1 : 0),
  }
}

// A layer whose counts are all zero said nothing in this step: that is no data, not perfect balance.
export function isSilent(frame, layer) {
  const { slots } = frame.header
  const counts = frame.arrays.counts.values
  for (let slot = 0; slot < slots; slot++) if (counts[layer * slots + slot]) return false
  return true
}

function realTotal(frame, layer) {
  const { slots, experts: count } = frame.header
  let total = 0
  for (let expert = 0; expert < count; expert++) total += frame.arrays.counts.values[layer * slots + expert]
  return total
}

// All cells as one picture: the colour of each expert of each layer in the chosen mode, silent layers left out.
function drawCells(context, view, board) {
  const { frame, tokens, data } = view
  const mode = MODES[data.mode] ?? "share"
  const cells = kept(view, "cells", [frame, mode, tokens], () => cellsOf(view, board, mode))
  const gapY = board.row - board.high
  drawGrid(context, cells, {
    x: LEFT, y: HEAD, width: board.right - LEFT, height: board.bottom - HEAD, background: tokens.bg, gapX: board.gap, gapY,
  })
}

function cellsOf(view, board, mode) {
  const { frame } = view
  const { slots, layers, experts: count } = board
  const values = frame.arrays[mode === "share" ? "counts" : mode].values
  const silent = Array.from({ length: layers }, (_, layer) => isSilent(frame, layer))
  const { load, signed: around, sequence } = scales(view)
  if (mode === "share") {
    const fair = silent.map((_, layer) => realTotal(frame, layer) / count)
    return gridOf(layers, count, (layer, expert) => {
      if (silent[layer]) return NaN
      const value = values[layer * slots + expert]
      return value > 0 && fair[layer] > 0 ? Math.log2(value / fair[layer]) : -2
    }, load)
  }
  const most = largest(view, mode) || 1
  const known = (value) => (Number.isFinite(value) ? value / most : 0)
  const at = (layer, expert) => (silent[layer] ? NaN : known(values[layer * slots + expert]))
  return gridOf(layers, count, at, mode === "counts" ? sequence : around)
}

function drawRow(context, view, board, layer) {
  const { frame, tokens } = view
  const top = HEAD + layer * board.row
  drawRowName(context, view, board, layer, top)
  if (isSilent(frame, layer)) {
    hatch(context, LEFT, top, board.right - LEFT, board.high, tokens.hatch)
    if (board.skips) hatch(context, board.skip, top, board.skipWide, board.high, tokens.hatch)
    return
  }
  const dead = frame.arrays.dead.values
  for (let expert = 0; expert < board.experts; expert++) {
    if (!dead[layer * board.slots + expert]) continue
    const quiet = dead[layer * board.slots + expert] < 2
    drawDead(context, view, { x: LEFT + expert * board.column, y: top, wide: board.column - board.gap, height: board.high, quiet })
  }
  if (board.skips) drawSkip(context, view, board, layer, top, board.high)
}

// The largest size of a signed measure over the real experts, kept for one frame.
function largest(view, mode) {
  const { frame } = view
  if (view.largestOf === frame && view.largestMode === mode) return view.largestValue
  const { slots, experts: count } = frame.header
  const values = frame.arrays[mode].values
  let most = 0
  for (let index = 0; index < values.length; index++) {
    const size = Math.abs(values[index])
    if (index % slots < count && size > most) most = size
  }
  Object.assign(view, { largestOf: frame, largestMode: mode, largestValue: most })
  return most
}

// Without a token; quiet while its rule does not name it: in the warm-up, or where its bias is bringing it back.
function drawDead(context, view, { x, y, wide, height, quiet }) {
  const { tokens } = view
  const width = Math.max(wide, 2)
  context.fillStyle = css(tokens.dead)
  context.fillRect(x, y, width, height)
  box(context, x, y, width, height, quiet ? tokens.off : tokens.fault)
  if (width < 8) return
  const ink = quiet ? tokens.off : [255, 255, 255]
  text(context, "×", x + width / 2, y + height / 2 + 0.5, ink, { size: 11, weight: 600, align: "center" })
}

// An empty frame at zero; a fill from the left as far as it is used, full at a fair share, amber where the rule names it.
function drawSkip(context, view, board, layer, top, high) {
  const { tokens, frame } = view
  box(context, board.skip, top, board.skipWide, high, tokens["rule"])
  let used = 0
  let all = 0
  for (let slot = 0; slot < board.slots; slot++) {
    const count = frame.arrays.counts.values[layer * board.slots + slot]
    all += count
    if (slot >= board.experts) used += count
  }
  if (!used) return
  const wide = Math.max(2, Math.min(1, (used / all) * board.experts) * (board.skipWide - 2))
  context.fillStyle = css(levelIn(frame, "skipping", layer) === "ok" ? tokens.off : tokens.warn)
  context.fillRect(board.skip + 1, top + 1, wide, high - 2)
}

function drawRowName(context, view, board, layer, top) {
  const { tokens } = view
  // Rows too low for a number each: every other one, and always the chosen one.
  const every = board.row < 10 ? 2 : 1
  if (layer % every && layer !== view.data.layer) return
  if (every > 1 && layer !== view.data.layer && Math.abs(layer - (view.data.layer ?? -9)) < every) return
  const level = levelOf(view, layer)
  const chosen = layer === view.data.layer
  const color = chosen ? tokens.link : { fault: tokens["fault-text"], warn: tokens["warn-text"], ok: tokens.faint }[level]
  const weight = chosen || level === "fault" ? 600 : 400
  text(context, two(layer, board.layers), LEFT - 6, top + board.row / 2, color, { align: "right", weight, size: 11 })
}

// The gravest of what the alarms name in the layer.
export const levelOf = (view, layer) => levelIn(view.frame, "level", layer)

function drawHeads(context, view, board) {
  const { tokens, data } = view
  const every = Math.max(1, Math.ceil((board.experts > 100 ? 28 : 20) / board.column))
  for (let expert = 0; expert < board.experts; expert += every) {
    if (board.skips && LEFT + (expert + 0.5) * board.column > board.right - 10 && board.column < 12) continue
    const chosen = expert === data.expert
    text(context, String(expert), LEFT + (expert + 0.5) * board.column - 0.5, HEAD - 10, chosen ? tokens.link : tokens.faint, {
      align: "center", weight: chosen ? 600 : 400, size: 10.5,
    })
  }
  if (board.skips) text(context, "skip", board.skip + board.skipWide / 2, HEAD - 10, tokens.faint, { align: "center", size: 10.5 })
}

const PAINTS = {
  load: (tokens, share) => loadColor(tokens, share * 4 - 2),
  counts: (tokens, share) => sequenceColor(tokens, share),
  bias: (tokens, share) => signedColor(tokens, share * 2 - 1),
}

// What the ends and the middle of the scale mean, and a word on how it is made.
function scaleWords(view, mode) {
  if (mode === "load") return [["¼×", "½×", "1/E", "2×", "4×"], "grey: within ±10 %"]
  const most = largest(view, MODES[mode])
  if (mode === "counts") return [["0", "", grouped(most / 2), "", grouped(most)], "tokens in this step"]
  const digits = most >= 1 ? 2 : most >= 0.01 ? 3 : 5
  return [[signed(-most, digits), "", "0", "", signed(most, digits)], "ends at the largest"]
}

function drawLegend(context, view, board) {
  const { tokens, data } = view
  const mode = MODES[data.mode] ? data.mode : "load"
  const narrow = board.right - LEFT < 300
  const wide = Math.min(176, (board.right - LEFT) / (narrow ? 1 : 2))
  const paint = PAINTS[mode] ?? PAINTS.bias
  for (let x = 0; x < wide; x++) {
    context.fillStyle = css(paint(tokens, x / (wide - 1)))
    context.fillRect(LEFT + x, 4, 1, 8)
  }
  const [marks, made] = scaleWords(view, mode)
  marks.forEach((mark, index) => {
    text(context, mark, LEFT + (wide * index) / 4, 21, tokens.muted, { align: "center", size: 10.5 })
  })
  let x = LEFT + wide + 22
  if (narrow) return
  context.fillStyle = css(tokens.dead)
  context.fillRect(x, 4, 10, 8)
  box(context, x, 4, 10, 8, view.frame.header.settling ? tokens.off : tokens.fault)
  text(context, "dead, 0 tokens", x + 15, 8.5, tokens.muted)
  x += 106
  hatch(context, x, 4, 10, 8, tokens.muted, 3)
  text(context, "no data", x + 15, 8.5, tokens.muted)
  x += 68
  if (x + 90 < view.width) text(context, made, x, 8.5, tokens.muted)
}

// The chosen layer through all its columns, and the chosen expert's cell.
function drawChosen(context, view, board) {
  const { tokens, data } = view
  const { layer, expert } = data
  if (layer === null || layer === undefined || layer >= board.layers) return
  const top = HEAD + layer * board.row
  box(context, LEFT - 2, top - 1.5, view.width - LEFT + 1, board.row + 2, tokens.link, 1.5)
  if (expert === null || expert === undefined || expert >= board.experts) return
  const wide = Math.max(board.column - board.gap, 4)
  box(context, LEFT + expert * board.column - 0.5, top - 0.5, wide + 1, board.high + 1, tokens.link, 1.5)
}

function drawPointed(context, view, board) {
  const { tokens, cursor: at } = view
  if (!board || !at || at.expert === null || at.expert === undefined) return
  const skip = at.expert >= board.experts
  const x = skip ? board.skip : LEFT + at.expert * board.column
  const wide = skip ? board.skipWide : Math.max(board.column - board.gap, 3)
  box(context, x - 1, HEAD + at.layer * board.row - 1, wide + 2, board.row + 1, tokens.text, 1.5)
}

function drawWaiting(view) {
  const { tokens } = view
  const rows = view.data.layers ?? 8
  const row = rowHigh(rows, view.data.bare ? NAMED : 0)
  const context = view.begin(HEAD + row * rows + FOOT)
  for (let layer = 0; layer < rows; layer++) {
    context.fillStyle = css(tokens.panel)
    context.fillRect(LEFT, HEAD + layer * row, view.width - LEFT, row - 1)
    text(context, two(layer, rows), LEFT - 6, HEAD + (layer + 0.5) * row, tokens.faint, { align: "right" })
  }
  const words = view.state.missed ? "no frame yet; tried again each second" : "waiting for the first frame"
  text(context, words, view.width / 2, HEAD + (row * rows) / 2, tokens.muted, { align: "center", size: 12.5 })
}

function cellWords(view, at, name) {
  const { header, arrays } = view.frame
  const index = at.layer * header.slots + at.expert
  const count = arrays.counts.values[index]
  if (at.expert >= header.experts) {
    return [{ text: `${name} · skip slot`, strong: true }, { text: `${grouped(count)} tokens, expected 0` }]
  }
  const total = realTotal(view.frame, at.layer)
  const share = total ? count / total : 0
  const parts = [
    `${grouped(count)} tokens, ${(share * 100).toFixed(2)} % of the layer's, fair ${(100 / header.experts).toFixed(2)} %`,
    `${(share * header.experts).toFixed(2)}×`,
    `bias ${signed(arrays.bias.values[index], 4)}`,
    `last change ${signed(arrays.delta_bias.values[index], 5)}`,
  ]
  const old = view.stale && view.age !== null ? [{ text: `${duration(view.age)} old` }] : []
  return [{ text: `${name} · expert ${at.expert}`, strong: true }, { text: parts.join("  ·  ") }, ...old]
}

