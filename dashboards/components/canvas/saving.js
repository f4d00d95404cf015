// Save what is shown: the pictures as PNG, made here in the browser, and the records behind them as CSV or Parquet.

import { moment, windowAt } from "./moment.js"
import { css, text } from "./paint.js"
import { put } from "./words.js"

// Pictures that are no part of a saved page: words in boxes of their own, ages, this row.
const LEFT_OUT = new Set(["badge", "saving", "sentence", "tiles", "layers"])
const MARGIN = 24
const TITLE = 34

export const saving = {
  dom: true,

  // The row is made once: who stands on one of its links with the keyboard stays there.
  draw(view) {
    if (!view.row) {
      view.row = document.createElement("div")
      view.row.className = "tt-saving"
      view.row.append("Save", link("PNG", "the pictures of this page as they are", () => save(view)))
      view.links = [["CSV", "csv"], ["Parquet", "parquet"]].map(([words, format]) => recordsLink(view, words, format))
      view.row.append(...view.links)
    }
    view.links.forEach((made) => made.aim())
    put(view, view.row)
  },

  stepped: (view) => view.paint(),
}

// A link to records. While the run goes on its first step is that of the moment at which it is used; a file that is
// refused says why in a page of its own.
function recordsLink(view, words, format) {
  const made = link(words, "", null)
  Object.assign(made, { target: "_blank", rel: "noopener" })
  made.aim = () => {
    const [from, to] = endsOf(view)
    const ends = [["from", from], ["to", to]].filter(([, end]) => end !== null).map(([name, end]) => `&${name}=${end}`)
    made.href = `${view.data.records}&format=${format}${ends.join("")}`
    const which = from === null ? "of the whole run" : from === to ? `of step ${from}` : to === null ? `from step ${from} on` : `of steps ${from} to ${to}`
    made.title = `the records behind this panel, ${which}`
  }
  made.onpointerdown = made.onclick = made.oncontextmenu = () => made.aim()
  return made
}

// The first and the last step of the records, null where the run's own end stands; of one step that whose counts are drawn.
function endsOf(view) {
  const { steps, newest, run } = view.data
  if (!steps) return [null, null]
  const drawn = [...view.everyone].filter(({ data, frame }) => data?.follow === "step" && frame?.header.run === run).map(({ frame }) => frame.header)
  const last = Math.max(newest, ...drawn.map(({ step }) => step).filter(Number.isFinite))
  if (steps === 1) {
    const step = moment.step === null ? last : (drawn.find(({ asked }) => asked === moment.step)?.step ?? moment.step)
    return [step, step]
  }
  return moment.step === null ? [Math.max(0, last - steps + 1), null] : windowAt(moment.step, steps)
}

function link(words, title, act) {
  const made = document.createElement("a")
  made.textContent = words
  made.title = title
  if (act) {
    made.setAttribute("role", "button")
    made.tabIndex = 0
    made.onclick = act
    made.onkeydown = (event) => {
      if (event.key !== "Enter" && event.key !== " ") return
      event.preventDefault()
      act()
    }
  }
  return made
}

// Every picture where it stands on the page, on one canvas, with the run, the step and the address above.
export function compose(view) {
  const parts = [...view.everyone]
    .filter((one) => !LEFT_OUT.has(one.data?.kind) && !one.canvas.hidden && one.canvas.isConnected)
    .map((one) => ({ one, edge: one.canvas.getBoundingClientRect() }))
    .filter(({ edge }) => edge.width > 0)
  const [left, top] = [Math.min(...parts.map(({ edge }) => edge.left)), Math.min(...parts.map(({ edge }) => edge.top))]
  const right = Math.max(...parts.map(({ edge }) => edge.right))
  const bottom = Math.max(...parts.map(({ edge }) => edge.bottom))
  const ratio = window.devicePixelRatio || 1
  const canvas = document.createElement("canvas")
  canvas.width = Math.round((right - left + 2 * MARGIN) * ratio)
  canvas.height = Math.round((bottom - top + 2 * MARGIN + TITLE) * ratio)
  const context = canvas.getContext("2d")
  context.scale(ratio, ratio)
  context.fillStyle = css(view.tokens.bg)
  context.fillRect(0, 0, canvas.width, canvas.height)
  const step = parts.map(({ one }) => one.frame?.header.step).find((found) => found !== undefined) ?? ""
  text(context, `${view.data.name ?? ""}, step ${moment.step ?? step}`, MARGIN, MARGIN, view.tokens.text, { size: 13, weight: 600 })
  text(context, window.location.href, MARGIN, MARGIN + 18, view.tokens.faint, { size: 10.5 })
  for (const { one, edge } of parts) {
    const [x, y] = [edge.left - left + MARGIN, edge.top - top + MARGIN + TITLE]
    context.drawImage(one.canvas, x, y, edge.width, edge.height)
    if (!one.above.hidden && one.above.width === one.canvas.width) context.drawImage(one.above, x, y, edge.width, edge.height)
  }
  return canvas
}

function save(view) {
  compose(view).toBlob((blob) => {
    const address = URL.createObjectURL(blob)
    const made = document.createElement("a")
    made.href = address
    made.download = `${view.data.file ?? "experts"}-step-${moment.step ?? "live"}.png`
    made.click()
    setTimeout(() => URL.revokeObjectURL(address), 10_000)
  }, "image/png")
}
