// The fleet: racks of sixteen columns, a column a node, a row a GPU; a click opens the node beside it, never over it.

import { countStates, drawCell, MEASURES, measureOf, stateOf, STATES, WORDS, worstOf } from "./fleet_cells.js"
import { box, text, veil, widthOf } from "./paint.js"

const RACK = 16
const LEFT = 22
const HEAD = 20
const FOOT = 20
const GAP = 16
const CELL_WIDEST = 46
const RACK_LEAST = 150
// Up to this many nodes a cell is wide enough for words, and the columns take the whole width.
const FEW = 8

export const fleet = {
  draw(view) {
    if (!view.frame) return drawWaiting(view)
    const floor = floorOf(view)
    const context = view.begin(floor.height)
    view.floor = floor
    for (let rack = 0; rack < floor.racks; rack++) drawRack(context, view, floor, rack)
    if (view.stale) veil(context, view.tokens, LEFT, 0, view.width - LEFT, floor.height, view.staleWords())
  },

  at(view, x, y) {
    const { floor, frame } = view
    if (!floor) return null
    for (let node = 0; node < frame.header.nodes.length; node++) {
      const [left, top] = cornerOf(floor, node)
      if (x < left || x >= left + floor.column || y < top - 2 || y >= top + floor.row * floor.gpus + 2) continue
      return { node, gpu: Math.max(0, Math.min(floor.gpus - 1, Math.floor((y - top) / floor.row))) }
    }
    return null
  },

  move(view, place, direction) {
    const { nodes, gpus } = view.frame.header
    const chosen = Math.max(0, nodes.indexOf(view.data.node))
    if (!place) return { node: chosen, gpu: 0 }
    const step = { Up: [0, -1], Down: [0, 1], Left: [-1, 0], Right: [1, 0] }[direction] ?? [0, 0]
    const clamp = (value, top) => Math.max(0, Math.min(top - 1, value))
    return { node: clamp(place.node + step[0], nodes.length), gpu: clamp(place.gpu + step[1], gpus) }
  },

  pick(view, place) {
    view.component.setTriggerValue("pick", { node: view.frame.header.nodes[place.node], gpu: place.gpu })
  },

  escape(view) {
    view.component.setTriggerValue("pick", { node: null, gpu: null })
  },

  words(view, place) {
    if (!place) return [{ text: "Point at a GPU; click or Enter opens its node, Esc closes it." }]
    const { nodes } = view.frame.header
    const state = stateOf(view.frame, place.node, place.gpu)
    const parts = [WORDS[state]]
    if (state !== "nodata") {
      for (const name of ["temperature", "power", "ecc"]) {
        const value = measureOf(view.frame, name, place.node, place.gpu)
        const { unit, title } = MEASURES[name]
        if (Number.isFinite(value)) parts.push(name === "ecc" ? `${title.toLowerCase()} ${value}` : `${value.toFixed(0)} ${unit}`)
      }
      const [links, port, job] = ["xgmi", "nic", "job"].map((name) => measureOf(view.frame, name, place.node, place.gpu))
      if (Number.isFinite(links)) parts.push(`${links} XGMI links`)
      if (port === 0) parts.push("its port has no link")
      if (Number.isFinite(job)) parts.push(view.frame.header.jobs[job])
    }
    return [{ text: `${nodes[place.node]} · GPU ${place.gpu}`, strong: true }, { text: parts.join("  ·  ") }]
  },

  label(view) {
    if (!view.frame) return view.data.label ?? "no data yet"
    const counts = countStates(view.frame)
    const told = STATES.filter((state) => counts[state]).map((state) => `${counts[state]} ${WORDS[state]}`)
    const bad = view.frame.header.nodes.filter((_, node) => ["fault", "warning"].includes(worstOf(view.frame, node).state))
    return `${view.frame.header.nodes.length} nodes: ${told.join(", ")}. ${bad.length ? `Look at ${bad.slice(0, 8).join(", ")}.` : "None needs a look."}`
  },
}

function floorOf(view) {
  const { nodes, gpus } = view.frame.header
  const racks = Math.max(1, Math.ceil(nodes.length / RACK))
  const inRow = Math.max(1, Math.min(racks <= 4 ? racks : racks <= 32 ? 4 : 8, Math.floor(view.width / RACK_LEAST)))
  const lines = Math.ceil(racks / inRow)
  const columns = racks === 1 ? nodes.length : RACK
  const rackWide = (view.width - LEFT - GAP * (inRow - 1)) / inRow
  const column = Math.min(nodes.length <= FEW ? Infinity : CELL_WIDEST, rackWide / columns)
  const room = view.data.height ?? 460
  const row = Math.max(5, Math.min(24, Math.floor((room / lines - HEAD - FOOT) / gpus)))
  return {
    gpus, racks, inRow, lines, column, row, rackWide,
    high: HEAD + row * gpus + FOOT, height: lines * (HEAD + row * gpus + FOOT),
    gap: column > 6 ? 1.5 : 0.5,
  }
}

function cornerOf(floor, node) {
  const rack = Math.floor(node / RACK)
  const left = LEFT + (rack % floor.inRow) * (floor.rackWide + GAP) + (node % RACK) * floor.column
  return [left, Math.floor(rack / floor.inRow) * floor.high + HEAD]
}

function drawRack(context, view, floor, rack) {
  const { tokens, frame } = view
  const { nodes } = frame.header
  const first = rack * RACK
  const last = Math.min(nodes.length, first + RACK) - 1
  const [left, top] = cornerOf(floor, first)
  text(context, `rack ${rack}`, left, top - 10, tokens.text, { size: 11, weight: 600 })
  const names = [`${nodes[first]} – ${tail(nodes[last])}`, `${tail(nodes[first])} – ${tail(nodes[last])}`]
  const from = rack > 9 ? 48 : 42
  const room = floor.rackWide - from
  text(context, names.find((name) => widthOf(context, name) <= room) ?? "", left + from, top - 10, tokens.faint, { size: 11 })
  for (let node = first; node <= last; node++) drawNode(context, view, floor, node, first)
  if (rack % floor.inRow) return
  for (let gpu = 0; gpu < floor.gpus; gpu++) {
    if (floor.row >= 10) text(context, String(gpu), LEFT - 8, top + (gpu + 0.5) * floor.row, tokens.faint, { align: "right", size: 10.5 })
  }
}

function drawNode(context, view, floor, node, first) {
  const { tokens, frame, cursor } = view
  const [left, top] = cornerOf(floor, node)
  const { nodes } = frame.header
  for (let gpu = 0; gpu < floor.gpus; gpu++) {
    const cell = [left, top + gpu * floor.row, floor.column - floor.gap, floor.row - 1.5]
    drawCell(context, tokens, frame, node, gpu, cell, view.data.measure)
    if (cursor?.node === node && cursor.gpu === gpu) box(context, cell[0] - 1, cell[1] - 1, cell[2] + 2, cell[3] + 2, tokens.text, 1.5)
  }
  if (nodes[node] === view.data.node) {
    box(context, left - 2, top - 3, floor.column - floor.gap + 4, floor.row * floor.gpus + 4.5, tokens.link, 2)
  }
  const every = floor.column >= 34 ? 1 : floor.column >= 8 ? 4 : 8
  if ((node - first) % every === 0) {
    const ink = nodes[node] === view.data.node ? tokens.link : tokens.faint
    text(context, floor.column > 90 ? nodes[node] : tail(nodes[node]), left, top + floor.row * floor.gpus + 10, ink, { size: 10.5 })
  }
}

// The part of a name that tells nodes apart: node-017 is 017.
function tail(name) {
  const found = /([0-9]+)$/.exec(name)
  return found ? found[1] : name.slice(-6)
}

function drawWaiting(view) {
  const context = view.begin(120)
  const words = view.state.missed ? "no frame yet; tried again each second" : "waiting for the first frame"
  text(context, words, view.width / 2, 60, view.tokens.muted, { align: "center", size: 12.5 })
}
