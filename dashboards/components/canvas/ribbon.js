// The fleet in one strip, a column a node; what needs a look is named under it.

import { countStates, drawCell, STATES, WORDS, worstOf } from "./fleet_cells.js"
import { line, text, veil, widthOf } from "./paint.js"

const RACK = 16
const HEAD = 15
const FOOT = 24
const GAP = 7
const CELL_WIDEST = 34
// Up to this many nodes each is named under its column, and the columns take the whole width.
const FEW = 8

export const ribbon = {
  draw(view) {
    if (!view.frame) return drawWaiting(view)
    const strip = stripOf(view)
    const context = view.begin(strip.height)
    view.strip = strip
    const { nodes } = view.frame.header
    for (let node = 0; node < nodes.length; node++) {
      const x = leftOf(strip, node)
      if (node % RACK === 0 && strip.racks > 1) text(context, `R${node / RACK}`, x, 6, view.tokens.faint, { size: 10.5 })
      for (let gpu = 0; gpu < strip.gpus; gpu++) {
        drawCell(context, view.tokens, view.frame, node, gpu, [x, strip.head + gpu * strip.row, strip.column - 1, strip.row - 1], "state")
      }
    }
    drawCallouts(context, view, strip)
    if (view.stale) veil(context, view.tokens, 0, strip.head, view.width, strip.row * strip.gpus, view.staleWords())
  },

  at(view, x) {
    const { strip, frame } = view
    if (!strip) return null
    for (let node = 0; node < frame.header.nodes.length; node++) {
      const left = leftOf(strip, node)
      if (x >= left && x < left + strip.column) return { node }
    }
    return null
  },

  move(view, place, direction) {
    const step = { Left: -1, Right: 1 }[direction] ?? 0
    return { node: Math.max(0, Math.min(view.frame.header.nodes.length - 1, (place?.node ?? 0) + step)) }
  },

  pick(view, place) {
    view.component.setTriggerValue("pick", { node: view.frame.header.nodes[place.node], gpu: null })
  },

  label(view) {
    if (!view.frame) return "no data yet"
    const counts = countStates(view.frame)
    return `Fleet: ${STATES.filter((state) => counts[state]).map((state) => `${counts[state]} ${WORDS[state]}`).join(", ")}.`
  },
}

function stripOf(view) {
  const { nodes, gpus } = view.frame.header
  const racks = Math.ceil(nodes.length / RACK)
  const widest = nodes.length <= FEW ? Infinity : CELL_WIDEST
  const column = Math.min(widest, (view.width - GAP * (racks - 1)) / Math.max(1, nodes.length))
  const row = 10.5
  const head = racks > 1 ? HEAD : 2
  return { gpus, racks, column, row, head, height: head + row * gpus + FOOT }
}

const leftOf = (strip, node) => node * strip.column + Math.floor(node / RACK) * GAP

// Names of what needs a look, the worst first, each under its column unless a worse one stands there.
function drawCallouts(context, view, strip) {
  const { tokens, frame } = view
  const { nodes } = frame.header
  const found = nodes.map((name, node) => ({ name, node, ...worstOf(frame, node) }))
  const order = ["fault", "warning", "nodata", "drained", "training", "idle"]
  const called = order.slice(0, 4)
  const shown = found.filter(({ state }) => called.includes(state) || nodes.length <= FEW).sort((one, other) => order.indexOf(one.state) - order.indexOf(other.state))
  const taken = []
  for (const { name, node, state } of shown) {
    const words = state === "nodata" ? `${name} no data` : state === "drained" ? `${name} drained` : name
    const ink = { fault: tokens["fault-text"], warning: tokens["warn-text"] }[state] ?? tokens.muted
    const wide = widthOf(context, words, 11, 500)
    const middle = leftOf(strip, node) + strip.column / 2
    const left = Math.max(0, Math.min(view.width - wide, middle - wide / 2))
    if (taken.some(([from, to]) => left < to + 8 && left + wide > from - 8)) continue
    taken.push([left, left + wide])
    const bottom = strip.head + strip.row * strip.gpus
    line(context, middle, bottom + 1, middle, bottom + 6, ink)
    text(context, words, left, bottom + 14, ink, { size: 11, weight: 500 })
  }
}

function drawWaiting(view) {
  const context = view.begin(HEAD + 84 + FOOT)
  const words = view.state.missed ? "no frame yet; tried again each second" : "waiting for the first frame"
  text(context, words, view.width / 2, 60, view.tokens.muted, { align: "center", size: 12.5 })
}
