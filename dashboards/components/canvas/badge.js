// The age of the data, counted up each second from the same frames that the page's pictures show.

import { css, duration, text, widthOf } from "./paint.js"

export const badge = {
  ages: true,

  draw(view) {
    const context = view.begin(22)
    const { tokens } = view
    const stale = view.stale
    const words = wordsOf(view)
    const wide = widthOf(context, words, 11.5) + 32
    const left = view.width - wide
    context.beginPath()
    context.roundRect(left + 0.5, 1.5, wide - 1, 19, 9.5)
    context.strokeStyle = css(stale ? tokens.warn : tokens["strong-rule"])
    context.lineWidth = 1
    context.stroke()
    context.beginPath()
    context.arc(left + 13, 11, 3, 0, 7)
    context.fillStyle = css(stale ? tokens.warn : view.frame && view.live ? tokens.ok : tokens.off)
    context.fill()
    text(context, words, left + 22, 11.5, stale ? tokens["warn-text"] : tokens.muted, { size: 11.5 })
  },

  label: (view) => wordsOf(view),
}

function wordsOf(view) {
  if (!view.frame) return view.state.missed ? "no data" : "waiting for data"
  if (!view.live) return "run has ended"
  return view.age === null ? "age not known" : `${view.data.what ?? "data"} ${duration(view.age)} old`
}
