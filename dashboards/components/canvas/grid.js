// Matrices as pictures of one pixel a cell, scaled up in one go: a cell each by its own call is too slow at 58 x 256.

import { box, css, loadColor, sequenceColor, signedColor } from "./paint.js"

const SHADES = 512

// Colours of a scale over [low, high] as bytes; one table serves until the page's appearance changes.
function tableOf(color, low, high) {
  const bytes = new Uint8Array(SHADES * 3)
  for (let index = 0; index < SHADES; index++) {
    bytes.set(color(low + ((high - low) * index) / (SHADES - 1)), index * 3)
  }
  return { bytes, low, high }
}

// The three scales of this view's tokens: load in log2(share x E), a signed share of the largest, a share of the most.
export function scales(view) {
  if (view.scalesOf !== view.tokens) {
    const { tokens } = view
    view.scalesOf = tokens
    view.scaleTables = {
      load: tableOf((value) => loadColor(tokens, value), -2, 2),
      signed: tableOf((value) => signedColor(tokens, value), -1, 1),
      sequence: tableOf((value) => sequenceColor(tokens, value), 0, 1),
    }
  }
  return view.scaleTables
}

// A canvas of rows x columns pixels; value(row, column) is on the table's scale, NaN leaves the cell out.
export function gridOf(rows, columns, value, { bytes, low, high }) {
  const canvas = document.createElement("canvas")
  canvas.width = Math.max(1, columns)
  canvas.height = Math.max(1, rows)
  if (!rows || !columns) return canvas
  const context = canvas.getContext("2d")
  const image = context.createImageData(columns, rows)
  const { data } = image
  const factor = (SHADES - 1) / (high - low)
  let at = 0
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++, at += 4) {
      const found = value(row, column)
      if (found !== found) continue
      const clipped = found < low ? low : found > high ? high : found
      const shade = Math.round((clipped - low) * factor) * 3
      data[at] = bytes[shade]
      data[at + 1] = bytes[shade + 1]
      data[at + 2] = bytes[shade + 2]
      data[at + 3] = 255
    }
  }
  context.putImageData(image, 0, 0)
  return canvas
}

// The picture at its place, nearest neighbour, with hairlines of the background between cells that have room for them.
export function drawGrid(context, canvas, { x, y, width, height, background, gapX = 0, gapY = 0 }) {
  context.imageSmoothingEnabled = false
  context.drawImage(canvas, x, y, width, height)
  context.fillStyle = css(background)
  if (gapX) {
    const cell = width / canvas.width
    for (let column = 1; column <= canvas.width; column++) context.fillRect(x + column * cell - gapX, y, gapX, height)
  }
  if (gapY) {
    const cell = height / canvas.height
    for (let row = 1; row <= canvas.height; row++) context.fillRect(x, y + row * cell - gapY, width, gapY)
  }
}

// What a frame and some choices make, made again only when one of them changes.
export function kept(view, name, parts, make) {
  view.keptOf ??= new Map()
  const known = view.keptOf.get(name)
  if (known && known.parts.length === parts.length && known.parts.every((part, index) => part === parts[index])) {
    return known.value
  }
  const value = make()
  view.keptOf.set(name, { parts, value })
  return value
}

// Pointing at a picture of layers x columns that begins at (left, head): a place is {layer, [name]}, its column null
// beside the cells. A view's board has layers, row (its height), wide and the number of columns under `count`.
export function pointing({ left, head, name, count }) {
  const clamp = (value, top) => Math.max(0, Math.min(top - 1, value))
  return {
    over(view, context) {
      const { board, cursor } = view
      if (!board || !cursor || cursor[name] === null) return
      const wide = board.wide / board[count]
      box(context, left + cursor[name] * wide - 1, head + cursor.layer * board.row - 1, wide + 1, board.row + 1, view.tokens.text, 1.5)
    },

    at(view, x, y) {
      const { board } = view
      const layer = board ? Math.floor((y - head) / board.row) : -1
      if (layer < 0 || layer >= board.layers) return null
      const column = Math.floor(((x - left) / board.wide) * board[count])
      return { layer, [name]: column >= 0 && column < board[count] ? column : null }
    },

    move(view, place, direction) {
      if (!place || !view.board) return { layer: view.data.layer ?? 0, [name]: 0 }
      const [down, right] = { Up: [-1, 0], Down: [1, 0], Left: [0, -1], Right: [0, 1] }[direction] ?? [0, 0]
      return { layer: clamp(place.layer + down, view.board.layers), [name]: clamp((place[name] ?? 0) + right, view.board[count]) }
    },
  }
}
