// Two runs' maps in one: how many times the load of the second one each expert has in the first. Equal shapes only.

import { drawGrid, gridOf, kept, scales } from "./grid.js"
import { isSilent, rowHigh } from "./experts.js"
import { box, css, hatch, loadColor, text, two } from "./paint.js"
import { none, some } from "./words.js"

const LEFT = 28
const HEAD = 56

export const difference = {
  draw(view) {
    const { frame, other, tokens } = view
    if (!frame || !other) return drawWaiting(view)
    const [one, two_] = [frame.header, other.header]
    view.board = null
    if (one.layers !== two_.layers || one.experts !== two_.experts) {
      const shape = (header) => `${header.layers} layers of ${header.experts} experts`
      return none(view, `A difference needs equal shapes: the first run has ${shape(one)}, the second one ${shape(two_)}. Side by side shows both.`)
    }
    some(view)
    const row = rowHigh(one.layers)
    const board = { layers: one.layers, experts: one.experts, row, wide: Math.max(60, view.width - LEFT - 4), bottom: HEAD + row * one.layers }
    view.board = board
    const context = view.begin(board.bottom + 6)
    const cells = kept(view, "cells", [frame, other, tokens], () =>
      gridOf(board.layers, board.experts, (layer, expert) => Math.log2(ratioOf(view, layer, expert)), scales(view).load))
    const column = board.wide / board.experts
    drawGrid(context, cells, { x: LEFT, y: HEAD, width: board.wide, height: row * board.layers, background: tokens.bg, gapX: column >= 4 ? 1 : 0, gapY: row >= 6 ? 1 : 0 })
    drawHeads(context, view, board, column)
    for (let layer = 0; layer < board.layers; layer++) {
      const chosen = layer === view.data.layer
      if (row >= 10 || chosen || layer % 2 === 0) {
        text(context, two(layer, board.layers), LEFT - 6, HEAD + (layer + 0.5) * row, chosen ? tokens.link : tokens.faint, { align: "right", size: 11, weight: chosen ? 600 : 400 })
      }
      if (isSilent(frame, layer) || isSilent(other, layer)) hatch(context, LEFT, HEAD + layer * row, board.wide, row - 1, tokens.hatch)
    }
    const { layer } = view.data
    if (layer !== null && layer < board.layers) box(context, LEFT - 2, HEAD + layer * row - 1.5, board.wide + 3, row + 2, tokens.link, 1.5)
  },

  over(view, context) {
    const { board, cursor } = view
    if (!board || !cursor) return
    const wide = board.wide / board.experts
    box(context, LEFT + cursor.expert * wide - 1, HEAD + cursor.layer * board.row - 1, wide + 1, board.row + 1, view.tokens.text, 1.5)
  },

  at(view, x, y) {
    const { board } = view
    if (!board || x < LEFT || x >= LEFT + board.wide) return null
    const layer = Math.floor((y - HEAD) / board.row)
    if (layer < 0 || layer >= board.layers) return null
    return { layer, expert: Math.min(board.experts - 1, Math.floor(((x - LEFT) / board.wide) * board.experts)) }
  },

  move(view, place, direction) {
    if (!place || !view.board) return { layer: view.data.layer ?? 0, expert: view.data.expert ?? 0 }
    const [down, right] = { Up: [-1, 0], Down: [1, 0], Left: [0, -1], Right: [0, 1] }[direction] ?? [0, 0]
    const clamp = (value, top) => Math.max(0, Math.min(top - 1, value))
    return { layer: clamp(place.layer + down, view.board.layers), expert: clamp(place.expert + right, view.board.experts) }
  },

  pick: (view, place) => view.component.setTriggerValue("pick", place),

  words(view, place) {
    if (!view.board) return []
    if (!place) return [{ text: "Point at a cell; click or Enter chooses its layer and expert." }]
    const { frame, other, board } = view
    const times = (of) => `${(shareOf(of, place.layer, place.expert) * board.experts).toFixed(2)}×`
    const said = `${times(frame)} at step ${frame.header.step} here, ${times(other)} at step ${other.header.step} there`
    return [{ text: `layer ${two(place.layer, board.layers)} · expert ${place.expert}`, strong: true }, { text: said }]
  },

  label(view) {
    if (!view.board) return "The difference of two runs needs equal shapes."
    let [most, at] = [0, [0, 0]]
    for (let layer = 0; layer < view.board.layers; layer++) {
      for (let expert = 0; expert < view.board.experts; expert++) {
        const far = Math.abs(Math.log2(ratioOf(view, layer, expert)))
        if (far > most && Number.isFinite(far)) [most, at] = [far, [layer, expert]]
      }
    }
    return `Load of the first run over the second's: farthest apart in layer ${at[0]}, expert ${at[1]}, by a factor of ${(2 ** most).toFixed(1)}.`
  },
}

function shareOf(frame, layer, expert) {
  const { slots, experts } = frame.header
  const { values } = frame.arrays.counts
  let all = 0
  for (let one = 0; one < experts; one++) all += values[layer * slots + one]
  return all ? values[layer * slots + expert] / all : NaN
}

// One expert's load in the first run over that in the second; a dead expert counts as a hundredth of a fair load.
function ratioOf(view, layer, expert) {
  const least = 0.01 / view.frame.header.experts
  const [one, other] = [shareOf(view.frame, layer, expert), shareOf(view.other, layer, expert)]
  return Math.max(one, least) / Math.max(other, least)
}

function drawHeads(context, view, board, column) {
  const { tokens } = view
  for (let x = 0; x < 176; x++) {
    context.fillStyle = css(loadColor(tokens, (x / 175) * 4 - 2))
    context.fillRect(LEFT + x, 4, 1, 8)
  }
  ;["¼×", "½×", "equal", "2×", "4×"].forEach((mark, index) => text(context, mark, LEFT + 44 * index, 21, tokens.muted, { align: "center", size: 10.5 }))
  text(context, "load in the first run ÷ load in the second", LEFT + 210, 8.5, tokens.muted)
  const every = Math.max(1, Math.ceil((board.experts > 100 ? 28 : 20) / column))
  for (let expert = 0; expert < board.experts; expert += every) {
    text(context, String(expert), LEFT + (expert + 0.5) * column, HEAD - 10, tokens.faint, { align: "center", size: 10.5 })
  }
}

function drawWaiting(view) {
  some(view)
  const context = view.begin(HEAD + 200)
  context.fillStyle = css(view.tokens.panel)
  context.fillRect(LEFT, HEAD, Math.max(20, view.width - LEFT), 200)
  const words = view.state.missed || view.otherState.missed ? "one of the runs has no frame of this step" : "waiting for both frames"
  text(context, words, view.width / 2, HEAD + 100, view.tokens.muted, { align: "center", size: 12.5 })
}
