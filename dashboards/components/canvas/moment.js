// The one time cursor of a page: the step that is shown (null while the page follows the run) and the step that is
// pointed at. Every picture listens here, so that a moment is the same in all of them without a rerun.

let run
let step = null
let hovered = null
let told
const sent = []
const listeners = new Set()

function tell(change) {
  for (const listen of [...listeners]) listen(change)
}

export const moment = {
  get step() {
    return step
  },

  get hovered() {
    return hovered
  },

  // The run whose moment this is: with another one the cursor begins anew where the address says.
  of(value) {
    if (value === run) return
    const other = run !== undefined
    run = value
    if (!other) return
    told = undefined
    sent.length = 0
    this.hover(null)
    this.pin(null)
  },

  // What the address says. Only a new word counts: a page that is drawn again in the middle of a replay says the old one,
  // and what was shown from here comes back late, when the cursor may have moved on.
  told(value) {
    if (value === told) return
    told = value
    const echo = sent.indexOf(value)
    sent.splice(0, echo < 0 ? sent.length : echo + 1)
    if (echo < 0) this.pin(value)
  },

  // Show this step and expect the address to say so.
  show(value) {
    if (value !== (sent.at(-1) ?? told)) sent.push(value)
    this.pin(value)
  },

  pin(value) {
    if (value === step) return
    step = value
    tell("step")
  },

  hover(value) {
    if (value === hovered) return
    hovered = value
    tell("hover")
  },

  listen(listener) {
    listeners.add(listener)
    return () => {
      listeners.delete(listener)
      if (listeners.size) return
      ;[run, step, hovered, told] = [undefined, null, null, undefined]
      sent.length = 0
    }
  },
}

// The address of what is shown at a moment. `follow` says how a picture goes with it: as one step, or as a window of
// `steps` steps (null: the whole run). Windows of the past begin at multiples of their half, so that pointing about in
// one does not move it, and the same address always shows the same.
export function addressOf({ url, follow, query, steps }, at) {
  if (!url) return url
  const asked = new URLSearchParams(query ?? {})
  if (follow === "step" && at !== null) asked.set("step", at)
  if (follow === "window" && steps) {
    if (at === null) asked.set("steps", steps)
    else {
      const [from, to] = windowAt(at, steps)
      asked.set("from", from)
      asked.set("to", to)
    }
  }
  const text = asked.toString()
  return text ? `${url}?${text}` : url
}

export function windowAt(at, steps) {
  const half = Math.ceil(steps / 2)
  const to = (Math.floor(at / half) + 1) * half
  return [Math.max(0, to - 2 * half + 1), Math.max(to, 2 * half)]
}
